"""Starts a session of a run: from its own newest checkpoint, else from weight files and initialization."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from mvjax import files as files_lib
from mvjax import messages, run_folder, tree
from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.train import checkpoint, distributed, load
from mvjax.train import step as step_lib

# Fields that may differ when a run is resumed: locations, intervals and ways to compute the same numbers.
FREE = (
    r"mesh\..*|frozen\.(moshi|siglip|codec|tokenizer|moshi_lora)"  # their hashes are compared
    r"|data\.(root|prepare|workers|bad_record_budget)"
    r"|data\.(speech|speechless)(\..*)?"  # sampling weights: `data.weights` keeps their history
    r"|train\.(log_every|trackers|checkpoint_.*|keep_checkpoints|max_.*|watchdog_.*)"
    r"|train\.(remat|attention|grad_accum_steps|loss_chunk)|talk\..*|evals(\..*)?"
)
# Fields that `mvjax train --extend` may change: how long and how fast a run learns from here on.
EXTENDED = (
    r"train\.steps|optim\.(learning_rate|warmup_steps|final_lr_fraction|weight_decay|clip_norm)"
)


class RunStart(NamedTuple):
    """State and frozen parameters that a session begins with, and a notice for the user.

    Attributes:
      records: {dataset: hash} of the records that the run was trained on until now.
    """

    state: step_lib.TrainState
    frozen: tree.Tree
    notice: str
    records: dict[str, str]
    warm_start: str | None  # RUN@STEP whose adapters the run began with


def start(
    run: schema.Config,
    folder: Path,
    mesh: Mesh,
    files: load.FrozenWeights,
    *,
    warm_start: run_folder.RunStep | None = None,
) -> RunStart:
    """Resumes this run if it has checkpoints, else loads weights and initializes what no file holds.

    A new run takes its adapters from `warm_start`, if there is one.

    Raises:
      ValueError: if a checkpoint or a weight file cannot be used.
    """
    root = folder / run_folder.CHECKPOINTS
    if not distributed.from_first(lambda: checkpoint.exists(root)):
        if warm_start is None:
            params = load.weights(run, mesh, files)
            state = step_lib.new_state(run, mesh, params.adapters)
            return RunStart(state, params.frozen, "new run", {}, None)
        adapters, origin = load.other_adapters(run, mesh, warm_start)
        state, notice = (
            step_lib.new_state(run, mesh, adapters),
            f"new run, with the adapters of {origin}",
        )
        return RunStart(state, load.frozen(run, mesh, files), notice, {}, origin)
    saved = _newest(root)
    load.check_identity(saved.metadata["frozen"], files.identity, place=str(saved.folder))
    adapters = load.shapes(run).adapters
    state = checkpoint.read(saved, step_lib.abstract_state(run, mesh, adapters))
    notice = f"resumes at step {int(state.step)}"
    if saved.damaged:
        damaged = (f"{path.name}: {problem}" for path, problem in saved.damaged.items())
        listing = messages.names(damaged, between="; ")
        notice += f" (set aside damaged checkpoints: {listing})"
    records, origin = saved.metadata.get("records", {}), saved.metadata.get("warm_start")
    if warm_start is not None:
        notice += f"; --from is not used: it started {f'from {origin}' if origin else 'anew'}"
    return RunStart(state, load.frozen(run, mesh, files), notice, records, origin)


def check_records(expected: Mapping[str, str], got: Mapping[str, str], *, folder: Path) -> None:
    """Checks that the datasets of a run hold the records that it was trained on; others may have come.

    Raises:
      ValueError: naming each dataset that differs.
    """
    bad = [name for name in sorted(expected.keys() & got.keys()) if expected[name] != got[name]]
    if bad:
        raise ValueError(
            f"{folder} was trained on other records of {', '.join(bad)}: their files were made anew since."
            " Put the old files back to resume it, or give the new ones a name of their own."
        )


def finished(folder: Path, run: schema.Config, *, extend: bool) -> dict[str, Any] | None:
    """Returns the summary of a run that has done all its steps, else None; reads only.

    Raises:
      ValueError: as `check_config`.
    """
    check_config(folder, run, extend=extend)
    path, saved = folder / run_folder.SUMMARY, checkpoint.folders(folder / run_folder.CHECKPOINTS)
    if not (saved and int(saved[0].name) >= run.train.steps and path.is_file()):
        return None
    try:
        step = checkpoint.at(saved[0].parent, int(saved[0].name)).metadata["step"]
        summary = json.loads(path.read_bytes())
        return summary if summary["finished"] and summary["step"] == step else None
    except (ValueError, KeyError, TypeError):  # damaged: a session mends what can be mended
        return None


def check_config(folder: Path, run: schema.Config, *, extend: bool = False) -> str:
    """Checks that the checkpoints in the folder, if any, were trained with this config.

    Returns:
      A notice of what changes and may do so because of `extend`.

    Raises:
      ValueError: naming every field that differs.
    """
    if not checkpoint.exists(folder / run_folder.CHECKPOINTS):
        if extend:
            raise ValueError(
                f"--extend: expected a run to go on with in {folder}, found no checkpoint"
            )
        return ""
    changed = config_text.differences(load.read_config(folder), run)
    extended = [path for path in changed if re.fullmatch(EXTENDED, path)]
    bad = [
        f"{path}: the run has {old!r}, now {new!r}"
        for path, (old, new) in changed.items()
        if not (re.fullmatch(FREE, path) or (extend and path in extended))
    ]
    done = int(checkpoint.folders(folder / run_folder.CHECKPOINTS)[0].name)
    if extend and "train.steps" in changed and run.train.steps < done:
        bad.append(f"train.steps: the run has done {done}, more than {run.train.steps}")
    remedy = "\nSet these fields back to resume it, or choose another --out."
    if extended and not extend:
        remedy = f"\nTo go on with another {messages.names(extended)} add --extend.{remedy}"
    tree.refuse(bad, f"{folder} holds a run of another config", remedy=remedy)
    news = (
        f"{path} {old!r} -> {new!r}" for path, (old, new) in changed.items() if path in extended
    )
    return f"from here on: {messages.names(news)}" if extended else ""


def write_config(folder: Path, run: schema.Config) -> None:
    """Writes config.txt and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    files_lib.write_atomic(folder / run_folder.CONFIG_TEXT, config_text.to_text(run).encode())
    described = json.dumps(config_text.to_json(run), indent=1) + "\n"
    files_lib.write_atomic(folder / run_folder.CONFIG_JSON, described.encode())


def _newest(root: Path) -> checkpoint.Checkpoint:
    """The newest good checkpoint; the first process verifies, and sets damaged ones aside, for all."""

    def choose() -> list:
        saved = checkpoint.newest(root)
        checkpoint.set_aside(saved.damaged)
        damaged = {folder.name: problem for folder, problem in saved.damaged.items()}
        return [saved.folder.name, saved.metadata, damaged]

    name, metadata, damaged = distributed.from_first(choose)
    damaged = {root / folder: problem for folder, problem in damaged.items()}
    return checkpoint.Checkpoint(root / name, metadata, damaged)
