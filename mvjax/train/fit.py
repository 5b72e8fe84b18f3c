"""The training loop: resume this run, else load weights, else initialise; then step, log, checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from mvjax import config, config_text, tree, types
from mvjax.data import mixture
from mvjax.train import checkpoint, load, runlog, sharding
from mvjax.train import step as step_lib

# Fields that may differ when a run is resumed: they name places or rhythms, and change no number.
FREE = (
    r"(mesh|frozen)\..*|data\.(root|prepare|workers)"
    r"|train\.(log_every|checkpoint_every|keep_checkpoints)"
)


@runtime_checkable
class Data(Protocol):
    """The batches of a run: data[step], a pure function of the step."""

    def __getitem__(self, step: int, /) -> types.Batch:
        """Returns the batch of one step."""
        ...


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended; written to summary.json.

    Attributes:
      step: steps done, in all sessions.
      finished: False if a signal stopped it; the same command goes on from `step`.
      seconds: of this session, compilation included.
      frames_per_second: over recent steps; None if this session did none.
      skipped: steps whose loss or gradients were not finite.
      frozen_hash: SHA-256 over all frozen parameters, the same before and after training.
      peak_memory_gb: of this process, on the host.
      metrics: the last logged line.
    """

    step: int
    finished: bool
    seconds: float
    frames_per_second: float | None
    skipped: int
    frozen_hash: str
    peak_memory_gb: float
    metrics: dict[str, Any]


class _Start(NamedTuple):
    state: step_lib.State
    frozen: tree.Tree
    notice: str


def fit(
    run: config.Config, folder: Path, *, data: Data | None = None, quiet: bool = False
) -> Summary:
    """Trains into a run folder, or goes on where an earlier call on the same folder stopped.

    SIGTERM and Ctrl-C end it after the step in progress, with a checkpoint.

    Args:
      run: the config.
      folder: run folder: config.txt, config.json, metrics.jsonl, tensorboard/, checkpoints/, summary.json.
      data: batches by step; None: the mixture of the config, prepared first if its root is empty.
      quiet: print nothing.

    Raises:
      ValueError: if the folder holds a run of another config, or a checkpoint cannot be written or read.
    """
    began = time.monotonic()
    mesh = sharding.make_mesh(run.mesh)
    sharding.check_rows(run.data, mesh)
    identity = load.identity(run)
    _check_config(folder, run)
    start = _start(run, folder, mesh, identity)
    data = mixture.batches(run) if data is None else data  # the slow part, after all that can fail
    _write_config(folder, run)
    before = load.tree_hash(start.frozen)
    meta = {"config": config_text.to_text(run), "frozen": identity, "frozen_hash": before}
    rows = run.data
    log = runlog.RunLog(
        folder,
        step=int(start.state.step),
        steps=run.train.steps,
        every=run.train.log_every,
        frames_per_step=rows.speech_rows * rows.speech_frames
        + rows.speechless_rows * rows.speechless_tokens,
        quiet=quiet,
    )
    with log, _stop_on_signal() as stopping:
        log.say(f"{folder}: {start.notice}; {run.train.steps} steps on {sharding.describe(mesh)}")
        state = _loop(run, folder, start, data, mesh, log=log, meta=meta, stopping=stopping)
        if int(state.step) < run.train.steps:
            log.say(f"stopped at step {int(state.step)}, saved; run the same command to resume")
    if load.tree_hash(start.frozen) != before:
        raise RuntimeError(f"{folder}: frozen parameters changed during training: this is a bug")
    summary = Summary(
        step=int(state.step),
        finished=int(state.step) >= run.train.steps,
        seconds=round(time.monotonic() - began, 2),
        frames_per_second=log.frames_per_second,
        skipped=int(state.skipped),
        frozen_hash=before,
        peak_memory_gb=round(_peak_memory_gb(), 3),
        metrics=log.last,
    )
    _write(folder / "summary.json", json.dumps(dataclasses.asdict(summary), indent=1) + "\n")
    return summary


def _loop(
    run: config.Config,
    folder: Path,
    start: _Start,
    data: Data,
    mesh: jax.sharding.Mesh,
    *,
    log: runlog.RunLog,
    meta: dict[str, Any],
    stopping: threading.Event,
) -> step_lib.State:
    """Steps until the end or until `stopping`; the last state is always saved."""
    state, frozen = start.state, start.frozen
    saved = first = int(state.step)
    train_step = step_lib.make(run, mesh, adapters=state.adapters, frozen=frozen)
    place = sharding.rows(mesh)
    for step in range(first + 1, run.train.steps + 1):
        if stopping.is_set():
            break
        batch = jax.device_put(data[step - 1], place)
        state, metrics = train_step(state, frozen, batch)
        log.push(step, metrics)
        if step % run.train.checkpoint_every == 0:
            with log.pause():
                _save(run, folder, state, meta)
            saved = step
    log.settle()
    if int(state.step) != saved:
        _save(run, folder, state, meta)
    return state


def _save(run: config.Config, folder: Path, state: step_lib.State, meta: dict[str, Any]) -> None:
    keep = run.train.keep_checkpoints
    checkpoint.save(folder / load.CHECKPOINTS, state, meta=meta, keep=keep)


def _start(
    run: config.Config, folder: Path, mesh: jax.sharding.Mesh, identity: load.Identity
) -> _Start:
    """Resume this run, else load weights, else initialise (what no file holds)."""
    root = folder / load.CHECKPOINTS
    if not checkpoint.exists(root):
        params = load.weights(run, mesh)
        state = step_lib.new_state(run, mesh, params.adapters)
        return _Start(state, params.frozen, "new run")
    found = checkpoint.newest(root)
    load.check_identity(found.meta["frozen"], identity, place=str(found.folder))
    shapes = load.shapes(run)
    state = checkpoint.read(found, step_lib.like(run, mesh, shapes.adapters))
    notice = f"resumes at step {int(state.step)}"
    if found.damaged:
        listing = "; ".join(f"{path.name}: {problem}" for path, problem in found.damaged.items())
        notice += f" (set aside damaged checkpoints: {listing})"
        checkpoint.set_aside(found.damaged)
    return _Start(state, load.frozen(run, mesh), notice)


def _check_config(folder: Path, run: config.Config) -> None:
    """Checks that what is in the folder was trained with this config; without checkpoints, nothing was.

    Raises:
      ValueError: naming every field that differs.
    """
    if not checkpoint.exists(folder / load.CHECKPOINTS):
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


def _write_config(folder: Path, run: config.Config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.txt", config_text.to_text(run))
    _write(folder / load.CONFIG_JSON, json.dumps(config_text.to_json(run), indent=1) + "\n")


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """SIGTERM, and the first Ctrl-C, ask for a stop after this step; a second Ctrl-C interrupts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield event
        return

    def stop(number: int, _: Any) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _peak_memory_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
