"""The training loop: start or resume a run, then step, log, call back and save checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from mvjax import files as files_lib
from mvjax import run_folder, tree, types
from mvjax.config import beside_moshi, schema
from mvjax.config import text as config_text
from mvjax.data import mixing, mixture
from mvjax.train import callbacks as callbacks_lib
from mvjax.train import (
    distributed,
    flops,
    guard,
    load,
    memory,
    resume,
    runlog,
    saving,
    sharding,
    trace,
)
from mvjax.train import phases as phases_lib
from mvjax.train import step as step_lib


@runtime_checkable
class Data(Protocol):
    """The batches of a run by step, this process's rows of each: a pure function of the step."""

    def __getitem__(self, step: int, /) -> types.Batch:
        """Returns the batch of one step, counted from 0."""
        ...

    def ids(self, step: int, /) -> dict[str, list[str]]:
        """Returns the sample ids of that batch by part, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended; written to summary.json."""

    step: int  # steps done, in all sessions
    finished: bool  # False if a signal stopped it; the same command resumes at `step`
    seconds: float  # of this session, compilation included
    frames_per_second: float | None  # throughput over recent steps; None if this session did none
    skipped: int  # steps whose loss or gradients were not finite, or whose loss was a spike
    frozen_hash: str  # SHA-256 over all frozen parameters before training; the same after it
    peak_memory_gb: float  # of this process, on the host, in units of 1e9 bytes
    metrics: dict[str, Any]  # the last line of metrics.jsonl


def fit(
    run: schema.Config,
    folder: Path,
    *,
    data: Data | None = None,
    callbacks: Sequence[callbacks_lib.Callback] = (),
    profile: trace.Span | None = None,
    quiet: bool = False,
) -> Summary:
    """Trains into a run folder, or resumes the run that the folder holds.

    On SIGTERM or Ctrl-C it finishes the step, saves a checkpoint and returns. Of several processes
    (`distributed.session`) each calls it with the same arguments; the folder is one that all of them see.

    Without `data` it takes the mixture of the config, prepared first if its root is empty. Callbacks are for
    such as an evaluation every 1000 steps; `profile` names steps to trace; `quiet` prints nothing.

    Raises:
      ValueError: if the folder holds a run of another config, checkpoints cannot be written or read, or too
        many batches in a row had to be skipped.
      RuntimeError: naming a callback that failed.
    """
    began, run = time.monotonic(), beside_moshi.follow(run)
    mesh = sharding.make_mesh(run.mesh)
    session, notices = _begin(run, folder, mesh, data)
    first = int(session.state.step)
    stop, throughput = distributed.StopRequest(mesh), flops.throughput(run, mesh)
    log = runlog.RunLog(folder, step=first, settings=run.train, throughput=throughput, quiet=quiet)
    with log, _on_signal(stop.wished):
        for notice in notices:
            log.say(notice)
        state = _train(session, log, stop, callbacks=callbacks, profile=profile)
        finished = int(state.step) >= run.train.steps
        if not finished:
            log.say(f"stopped at step {int(state.step)}, saved; run the same command to resume")
        elif first < run.train.steps:
            log.say(f"finished {run.train.steps} steps; the last checkpoint is saved")
    frozen_hash = session.meta["frozen_hash"]
    if finished and load.tree_hash(session.frozen) != frozen_hash:  # a signal leaves no time
        raise RuntimeError(f"{folder}: frozen parameters changed during training: this is a bug")
    summary = Summary(
        step=int(state.step),
        finished=finished,
        seconds=round(time.monotonic() - began, 2),
        frames_per_second=log.frames_per_second,
        skipped=int(state.skipped),
        frozen_hash=frozen_hash,
        peak_memory_gb=round(memory.host_peak_gb(), 3),
        metrics=log.last,
    )
    # In every process it is there when this returns, for the launch scripts.
    path, text = folder / run_folder.SUMMARY, json.dumps(dataclasses.asdict(summary), indent=1)
    distributed.from_first(lambda: files_lib.write_atomic(path, f"{text}\n".encode()))
    return summary


class _Session(NamedTuple):
    """What a session of a run begins with; every checkpoint records `meta`."""

    run: schema.Config
    folder: Path
    mesh: jax.sharding.Mesh
    data: Data
    state: step_lib.TrainState
    frozen: tree.Tree
    meta: dict[str, Any]


def _begin(
    run: schema.Config, folder: Path, mesh: jax.sharding.Mesh, data: Data | None
) -> tuple[_Session, list[str]]:
    """Resumes or starts a run, and writes its config into the folder; returns notices for the user too."""
    sharding.check_rows(run.data, mesh)
    files = load.open_frozen(run)
    distributed.from_first(lambda: resume.check_config(folder, run))
    start = resume.start(run, folder, mesh, files)
    path, step = folder / run_folder.MIXTURE, int(start.state.step)
    history, changes = mixing.resume(path, run.data, step)
    records = {}
    if data is None:  # the slow part, after all that can fail
        data = _mixture(run, folder, mesh, history)
        records = distributed.from_first(lambda: mixture.records_identity(run.data))
        resume.check_records(start.records, records, folder=folder)
    distributed.from_first(lambda: resume.write_config(folder, run))
    distributed.from_first(lambda: mixing.write(path, history))
    meta = {
        "config": config_text.to_text(run),
        "frozen": files.identity,
        "frozen_hash": load.tree_hash(start.frozen),
        "records": start.records | records,
    }
    place, count = sharding.describe(mesh), jax.process_count()
    if count > 1:
        place += f", {count} processes"
    then = "on SIGTERM or Ctrl-C the run finishes its step, saves a checkpoint and exits 0"
    if step >= run.train.steps:
        then = "nothing to train: all steps are done"
    notices = [f"{folder}: {start.notice}; {run.train.steps} steps on {place}", then, changes]
    session = _Session(run, folder, mesh, data, start.state, start.frozen, meta)
    return session, [notice for notice in notices if notice]


def _train(
    session: _Session,
    log: runlog.RunLog,
    stop: distributed.StopRequest,
    *,
    callbacks: Sequence[callbacks_lib.Callback],
    profile: trace.Span | None,
) -> step_lib.TrainState:
    """Steps until the end, or until a process wishes to stop; saves the last state in any case."""
    run, state, frozen = session.run, session.state, session.frozen
    settings, first = run.train, int(state.step) + 1
    feed = distributed.BatchFeed(session.mesh)
    train_step = step_lib.make(run, session.mesh, adapters=state.adapters, frozen=frozen)
    skips = guard.Skips(settings.max_skipped, total=int(state.skipped))
    saver = saving.CheckpointSaver(
        session.folder / run_folder.CHECKPOINTS,
        keep=settings.keep_checkpoints,
        max_failed=settings.max_failed_saves,
        saved=int(state.step),
        say=log.warn,
    )

    watchdog = phases_lib.Watchdog(
        session.folder,
        seconds=settings.watchdog_seconds,
        say=log.warn,
        stacks=settings.watchdog_stacks,
    )
    phases = phases_lib.Phases(log.timer, watchdog)
    tracer = trace.StepTracer(session.folder, profile, say=log.say)
    with watchdog, saver, tracer:
        for step in range(first, settings.steps + 1):
            if skips.exceeded or stop.granted():
                break
            with phases("data", f"the data of step {step}"):
                batch = feed(session.data[step - 1])
            with phases("step", _blocked_on(step, first)), tracer.step(step):
                state, metrics = train_step(state, frozen, batch)
                skips.add(log.push(step, metrics))
            tracer.after(step, metrics)
            for callback in (callback for callback in callbacks if step % callback.every == 0):
                with phases("step", f"step {step}"):
                    jax.block_until_ready(metrics)
                with phases("callbacks", f"callback {callback.name} after step {step}"):
                    model = callbacks_lib.ModelState(state.adapters, state.ema, frozen)
                    log.add(callback.name, callback.run(step, model))
            if step % settings.checkpoint_every == 0:
                with phases("step", f"step {step}"):
                    skips.add(log.finish_step())
                with phases("checkpoint", f"the checkpoint of step {step}"):
                    saver.save(state, session.meta)
        with phases("step", "the last step"):
            skips.add(log.finish_step())
        with phases("checkpoint", "the last checkpoint"):
            saver.finish(state, session.meta)
    if skips.exceeded:
        raise ValueError(guard.report(skips.steps, session.data.ids, optim=run.optim))
    return state


def _blocked_on(step: int, first: int) -> str:
    """What the training thread waits for while a step runs: it is one step ahead of the devices."""
    return "the compilation of the step" if step == first else f"the devices to do step {step - 1}"


def _mixture(
    run: schema.Config, folder: Path, mesh: jax.sharding.Mesh, history: mixing.History
) -> Data:
    """This process's rows of the mixture; the first process makes the records if they are missing."""
    distributed.from_first(lambda: mixture.ensure_records(run.data))
    feed = distributed.BatchFeed(mesh)
    return mixture.batches(
        run,
        process_index=feed.index,
        process_count=feed.count,
        history=history,
        listing=folder / run_folder.bad_records(feed.index),
    )


@contextlib.contextmanager
def _on_signal(wished: threading.Event) -> Iterator[None]:
    """On SIGTERM or a first Ctrl-C sets `wished`: stop after this step; a second Ctrl-C interrupts it."""
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return

    def stop(number: int, _: Any) -> None:
        if wished.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        wished.set()

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():  # None: not Python's, and out of its reach
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
