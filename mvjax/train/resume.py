"""Where a session of a run begins: its own last checkpoint, else weights from files, else fresh ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from mvjax import files, run_folder, tree
from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.train import checkpoint, distributed, load
from mvjax.train import step as step_lib

# Fields that may differ when a run is resumed: they name places or rhythms, and change no number.
FREE = (
    r"(mesh|frozen)\..*|data\.(root|prepare|workers|bad_record_budget)"
    r"|data\.(speech|speechless)(\..*)?"  # sampling weights: `data.weights` keeps their history
    r"|train\.(log_every|checkpoint_every|keep_checkpoints|max_.*|watchdog_.*)"
    r"|train\.(remat|attention|grad_accum_steps|loss_chunk)"
)


class RunStart(NamedTuple):
    """The state to go on from, the frozen parameters, and what to tell the user."""

    state: step_lib.TrainState
    frozen: tree.Tree
    notice: str


def start(run: schema.Config, folder: Path, mesh: Mesh, identity: load.Identity) -> RunStart:
    """Resumes this run, else loads weights, else initializes (what no file holds).

    Raises:
      ValueError: if a checkpoint or a weight file cannot be used.
    """
    root = folder / run_folder.CHECKPOINTS
    if not distributed.from_first(lambda: checkpoint.exists(root)):
        params = load.weights(run, mesh)
        return RunStart(step_lib.new_state(run, mesh, params.adapters), params.frozen, "new run")
    found = _newest(root)
    load.check_identity(found.meta["frozen"], identity, place=str(found.folder))
    shapes = load.shapes(run)
    state = checkpoint.read(found, step_lib.abstract_state(run, mesh, shapes.adapters))
    notice = f"resumes at step {int(state.step)}"
    if found.damaged:
        listing = "; ".join(f"{path.name}: {problem}" for path, problem in found.damaged.items())
        notice += f" (set aside damaged checkpoints: {listing})"
    return RunStart(state, load.frozen(run, mesh), notice)


def check_config(folder: Path, run: schema.Config) -> None:
    """Checks that what is in the folder was trained with this config; without checkpoints, nothing was.

    Raises:
      ValueError: naming every field that differs.
    """
    if not checkpoint.exists(folder / run_folder.CHECKPOINTS):
        return
    changed = config_text.differences(load.read_config(folder), run)
    bad = [
        f"{path}: the run has {old!r}, now {new!r}"
        for path, (old, new) in changed.items()
        if not re.fullmatch(FREE, path)
    ]
    if bad:
        raise ValueError(
            f"{folder} holds a run of another config:\n  "
            + "\n  ".join(bad)
            + "\nSet these fields back to resume it, or choose another --out."
        )


def write_config(folder: Path, run: schema.Config) -> None:
    """Writes config.txt and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(folder / run_folder.CONFIG_TEXT, config_text.to_text(run).encode())
    described = json.dumps(config_text.to_json(run), indent=1) + "\n"
    files.write_atomic(folder / run_folder.CONFIG_JSON, described.encode())


def _newest(root: Path) -> checkpoint.Found:
    """The newest good checkpoint, chosen and cleared of damaged ones by the first process for all."""

    def choose() -> dict:
        found = checkpoint.newest(root)
        checkpoint.set_aside(found.damaged)
        damaged = {str(folder): problem for folder, problem in found.damaged.items()}
        return {"folder": str(found.folder), "meta": found.meta, "damaged": damaged}

    chosen = distributed.from_first(choose)
    damaged = {Path(folder): problem for folder, problem in chosen["damaged"].items()}
    return checkpoint.Found(Path(chosen["folder"]), chosen["meta"], damaged)
