"""The training loop: begin or resume, then step, log and save, until the end, a signal, or a fault."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from mvjax import files, run_folder, types
from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.data import mixing, mixture
from mvjax.train import (
    clock,
    distributed,
    flops,
    guard,
    load,
    resume,
    runlog,
    saving,
    sharding,
    trace,
    watchdog,
)
from mvjax.train import step as step_lib


@runtime_checkable
class Data(Protocol):
    """The batches of a run: data[step], this process's rows, a pure function of the step."""

    def __getitem__(self, step: int, /) -> types.Batch:
        """Returns the batch of one step, counted from 0."""
        ...

    def ids(self, step: int, /) -> dict[str, list[str]]:
        """Returns the samples of that batch by part, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended; written to summary.json.

    Attributes:
      step: steps done, in all sessions.
      finished: False if a signal stopped it; the same command goes on from `step`.
      seconds: of this session, compilation included.
      frames_per_second: over recent steps; None if this session did none.
      skipped: steps whose loss or gradients were not finite, or whose loss was a spike.
      frozen_hash: SHA-256 over all frozen parameters before training; checked to be the same after it.
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


def fit(
    run: schema.Config,
    folder: Path,
    *,
    data: Data | None = None,
    profile: trace.Span | None = None,
    quiet: bool = False,
) -> Summary:
    """Trains into a run folder, or goes on where an earlier call on the same folder stopped.

    SIGTERM and Ctrl-C end it after the step in progress, with a checkpoint. Of several processes
    (`distributed.session`) each calls it with the same arguments; the folder is one that all of them see.

    Args:
      run: the config.
      folder: run folder: config.txt, config.json, metrics.jsonl, tensorboard/, checkpoints/, summary.json.
      data: batches by step; None: the mixture of the config, prepared first if its root is empty.
      profile: steps to trace into profile/.
      quiet: print nothing.

    Raises:
      ValueError: if the folder holds a run of another config, checkpoints cannot be written or read, or too
        many batches in a row had to be skipped.
    """
    began = time.monotonic()
    mesh = sharding.make_mesh(run.mesh)
    sharding.check_rows(run.data, mesh)
    identity = load.identity(run)
    distributed.from_first(lambda: resume.check_config(folder, run))
    start = resume.start(run, folder, mesh, identity)
    history, changes = mixing.resume(folder / run_folder.MIXTURE, run.data, int(start.state.step))
    if data is None:  # the slow part, after all that can fail
        data = _mixture(run, folder, mesh, history)
    distributed.from_first(lambda: resume.write_config(folder, run))
    distributed.from_first(lambda: mixing.write(folder / run_folder.MIXTURE, history))
    before = load.tree_hash(start.frozen)
    meta = {"config": config_text.to_text(run), "frozen": identity, "frozen_hash": before}
    log = _open_log(run, folder, mesh, step=int(start.state.step), quiet=quiet)
    stop, several = distributed.Stop(mesh), jax.process_count() > 1
    with log, _on_signal(stop.wished):
        place = sharding.describe(mesh) + f", {jax.process_count()} processes" * several
        log.say(f"{folder}: {start.notice}; {run.train.steps} steps on {place}")
        if changes:
            log.say(changes)
        state = _loop(
            run, folder, start, data, mesh, log=log, meta=meta, stop=stop, profile=profile
        )
        if not _finished(state, run):
            log.say(f"stopped at step {int(state.step)}, saved; run the same command to resume")
    if _finished(state, run) and load.tree_hash(start.frozen) != before:  # a signal leaves no time
        raise RuntimeError(f"{folder}: frozen parameters changed during training: this is a bug")
    summary = Summary(
        step=int(state.step),
        finished=_finished(state, run),
        seconds=round(time.monotonic() - began, 2),
        frames_per_second=log.frames_per_second,
        skipped=int(state.skipped),
        frozen_hash=before,
        peak_memory_gb=round(clock.host_memory_gb(), 3),
        metrics=log.last,
    )
    _write_summary(folder, summary)
    return summary


def _loop(
    run: schema.Config,
    folder: Path,
    start: resume.Start,
    data: Data,
    mesh: jax.sharding.Mesh,
    *,
    log: runlog.RunLog,
    meta: dict[str, Any],
    stop: distributed.Stop,
    profile: trace.Span | None,
) -> step_lib.State:
    """Steps until the end, or until asked to stop; the last state is always saved."""
    settings = run.train
    state, frozen = start.state, start.frozen
    first = int(state.step) + 1
    feed = distributed.Feed(mesh)
    train_step = step_lib.make(run, mesh, adapters=state.adapters, frozen=frozen)
    skips = guard.Skips(settings.max_skipped, total=int(state.skipped))
    saver = saving.Saver(
        folder / run_folder.CHECKPOINTS,
        keep=settings.keep_checkpoints,
        max_failed=settings.max_failed_saves,
        saved=first - 1,
        say=log.warn,
    )
    dog = watchdog.Watchdog(
        folder, seconds=settings.watchdog_seconds, say=log.warn, stacks=settings.watchdog_stacks
    )
    tracer = trace.Trace(folder, profile, say=log.say)
    with dog, saver, tracer:
        for step in range(first, settings.steps + 1):
            if skips.exceeded or stop.granted():
                break
            with dog.waiting(f"the data of step {step}"), log.clock.spent("data"):
                batch = feed(data[step - 1])
            with dog.waiting(_devices(step, first)), tracer.step(step):
                state, metrics = train_step(state, frozen, batch)
                skips.add(log.push(step, metrics))
            tracer.after(step, metrics)
            if step % settings.checkpoint_every == 0:
                with dog.waiting(f"step {step} and its checkpoint"):
                    skips.add(log.settle())
                    with log.clock.spent("checkpoint"):
                        saver.save(state, meta)
        with dog.waiting("the last step and its checkpoint"):
            skips.add(log.settle())
            saver.finish(state, meta)
    if skips.exceeded:
        raise ValueError(guard.report(skips.steps, data.ids, optim=run.optim))
    return state


def _open_log(
    run: schema.Config, folder: Path, mesh: jax.sharding.Mesh, *, step: int, quiet: bool
) -> runlog.RunLog:
    settings = run.train
    return runlog.RunLog(
        folder,
        step=step,
        steps=settings.steps,
        every=settings.log_every,
        throughput=flops.throughput(run, mesh),
        quiet=quiet,
    )


def _finished(state: step_lib.State, run: schema.Config) -> bool:
    return int(state.step) >= run.train.steps


def _write_summary(folder: Path, summary: Summary) -> None:
    """Written when this returns, in whichever process: launch scripts read it next."""
    text = json.dumps(dataclasses.asdict(summary), indent=1) + "\n"
    distributed.from_first(lambda: files.write_atomic(folder / run_folder.SUMMARY, text.encode()))


def _devices(step: int, first: int) -> str:
    """What the training thread waits for while a step runs: it is one step ahead of the devices."""
    return "the compilation of the step" if step == first else f"the devices to do step {step - 1}"


def _mixture(
    run: schema.Config, folder: Path, mesh: jax.sharding.Mesh, history: mixing.History
) -> Data:
    """This process's rows of the mixture; the first process makes the records if they are missing."""
    distributed.from_first(lambda: mixture.ensure_records(run.data))
    feed = distributed.Feed(mesh)
    return mixture.batches(
        run,
        process_index=feed.index,
        process_count=feed.count,
        history=history,
        listing=folder / run_folder.bad_records(feed.index),
    )


@contextlib.contextmanager
def _on_signal(wished: threading.Event) -> Iterator[None]:
    """SIGTERM, and the first Ctrl-C, ask for a stop after this step; a second Ctrl-C interrupts."""
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
