"""The training loop: start or resume a run, then step, log, call back and save checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from mvjax import files as files_lib
from mvjax import messages, run_folder, types
from mvjax.config import beside_moshi, schema
from mvjax.train import (
    begin,
    distributed,
    flops,
    guard,
    learnable,
    load,
    lock,
    memory,
    output,
    resume,
    run_store,
    runlog,
    saving,
    sharding,
    signals,
    trace,
    wandb_tracker,
)
from mvjax.train import callbacks as callbacks_lib
from mvjax.train import phases as phases_lib
from mvjax.train import step as step_lib


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
    data: begin.Data | None = None,
    callbacks: Sequence[callbacks_lib.Callback] = (),
    profile: trace.Span | None = None,
    quiet: bool = False,
    extend: bool = False,
    warm_start: run_folder.RunStep | None = None,
) -> Summary:
    """Trains into a run folder, or resumes the run that the folder holds; a finished one is left as it is.

    On SIGTERM, Ctrl-C and the like (`signals`) it finishes the step, saves a checkpoint and returns; while it
    starts or compiles it ends at once. Of several processes (`distributed.session`) each calls it with the
    same arguments; the folder is one that all of them see.

    Args:
      run: the config.
      folder: of the run; its parents are made.
      data: by default the mixture of the config, prepared first if its root is empty.
      callbacks: for such as an evaluation every 1000 steps.
      profile: steps to trace.
      quiet: print nothing.
      extend: the number of steps and the learning rate may differ from those of the run in the folder.
      warm_start: another run whose adapters a new run begins with.

    Raises:
      ValueError: if the folder holds a run of another config, or another process trains into it; if there
        is nothing to learn; if checkpoints cannot be written or read, or too many batches in a row had to
        be skipped.
      RuntimeError: naming a callback that failed.
      signals.Stopped: if it was ended before it trained.
    """
    began, run = time.monotonic(), beside_moshi.follow(run)
    with contextlib.ExitStack() as stack:
        stack.enter_context(output.unbreakable())
        on_signal = stack.enter_context(signals.Signals(quiet=quiet))
        done = distributed.from_first(lambda: resume.finished(folder, run, extend=extend))
        if done is not None:
            on_signal.say(
                f"{folder}: finished, {messages.counted(run.train.steps, 'step is', 'steps are')} done;"
                " nothing is changed."
                " To train on: --extend --set train.steps=N"
                + (" (--from is not used)" if warm_start else "")
            )
            return Summary(**done)
        distributed.from_first(lambda: stack.enter_context(lock.held(folder)))
        run_store.refresh(folder)  # the last that another session sent
        mesh = sharding.make_mesh(run.mesh)
        watchdog = stack.enter_context(_watchdog(run.train, folder, on_signal))
        session, notices = begin.session(
            run, folder, mesh, watchdog, data=data, extend=extend, warm_start=warm_start
        )
        with _log(session, quiet=quiet) as log:
            on_signal.say = log.warn
            for notice in notices:
                log.say(notice)
            state = _train(session, log, on_signal, watchdog, callbacks=callbacks, profile=profile)
        return _summary(session, state, log, began)


def _watchdog(
    settings: schema.TrainConfig, folder: Path, on_signal: signals.Signals
) -> phases_lib.Watchdog:
    seconds, stacks = settings.watchdog_seconds, settings.watchdog_stacks

    def say(text: str) -> None:
        on_signal.say(text)  # first to standard error, later above the progress line

    return phases_lib.Watchdog(folder, seconds=seconds, say=say, stacks=stacks)


def _log(session: begin.Session, *, quiet: bool) -> runlog.RunLog:
    step, throughput = int(session.state.step), flops.throughput(session.run, session.mesh)
    run, folder = session.run, session.folder
    makers = {"wandb": lambda: wandb_tracker.Wandb(run, folder)}
    others = {name: make for name, make in makers.items() if name in run.train.trackers}
    return runlog.RunLog(
        folder, step=step, settings=run.train, throughput=throughput, others=others, quiet=quiet
    )


def _summary(
    session: begin.Session, state: step_lib.TrainState, log: runlog.RunLog, began: float
) -> Summary:
    """Checks that the frozen parameters are the same as before, and writes the summary."""
    folder, finished = session.folder, int(state.step) >= session.run.train.steps
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
    text = json.dumps(dataclasses.asdict(summary), indent=1)

    def write() -> None:
        files_lib.write_atomic(folder / run_folder.SUMMARY, f"{text}\n".encode())
        run_store.send(folder)

    distributed.from_first(write)
    return summary


def _train(
    session: begin.Session,
    log: runlog.RunLog,
    on_signal: signals.Signals,
    watchdog: phases_lib.Watchdog,
    *,
    callbacks: Sequence[callbacks_lib.Callback],
    profile: trace.Span | None,
) -> step_lib.TrainState:
    """Steps until the end, or until a process wishes to stop; saves the last state in any case."""
    run, state, frozen = session.run, session.state, session.frozen
    settings, first = run.train, int(state.step) + 1
    stop = distributed.Request(session.mesh, on_signal.wished)
    feed = distributed.BatchFeed(session.mesh)
    layers = step_lib.unstacked(run, session.mesh, frozen)
    train_step = step_lib.make(run, session.mesh, adapters=state.adapters, frozen=layers)
    skips = guard.Skips(settings.max_skipped, total=int(state.skipped))
    saver, saves = _saver(session, log), saving.Schedule(settings, session.mesh)
    phases = phases_lib.Phases(log.timer, watchdog)
    tracer = trace.StepTracer(session.folder, profile, say=log.say)
    with saver, tracer:
        for step in range(first, settings.steps + 1):
            if skips.exceeded or stop.granted():
                break
            with phases("data", f"the data of step {step}"):
                batch = session.data[step - 1]
                if step == first:
                    _check_learnable(session, batch, log)
                batch = feed(batch)
            with phases("step", _blocked_on(step, first)), tracer.step(step):
                with _compiling(on_signal, log) if step == first else contextlib.nullcontext():
                    state, metrics = train_step(state, layers, batch)
                skips.add(log.push(step, metrics))
            if step == first:
                on_signal.training(lambda: _unsaved(saver.saved, log.step))
            tracer.after(step, metrics)
            for callback in (callback for callback in callbacks if step % callback.every == 0):
                with phases("step", f"step {step}"):
                    jax.block_until_ready(metrics)
                with phases("callbacks", f"callback {callback.name} after step {step}"):
                    model = callbacks_lib.ModelState(state.adapters, state.ema, frozen)
                    log.add(callback.name, *callback.run(step, model))
            if saves.due(step):
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
    if log.step < settings.steps:
        log.say(f"stopped at step {log.step}, saved; run the same command to resume")
    elif first <= settings.steps:
        log.say(
            f"finished {messages.counted(settings.steps, 'step')}; the last checkpoint is saved"
        )
    return state


def _saver(session: begin.Session, log: runlog.RunLog) -> saving.CheckpointSaver:
    settings = session.run.train
    return saving.CheckpointSaver(
        session.folder / run_folder.CHECKPOINTS,
        keep=settings.keep_checkpoints,
        max_failed=settings.max_failed_saves,
        saved=int(session.state.step),
        say=log.warn,
    )


def _check_learnable(session: begin.Session, batch: types.Batch, log: runlog.RunLog) -> None:
    """Checks the first batch of the session, which is made already, and others only if it lacks something."""
    step = int(session.state.step)
    learnable.check(session.run, lambda n: session.data[step + n] if n else batch, say=log.say)


@contextlib.contextmanager
def _compiling(on_signal: signals.Signals, log: runlog.RunLog) -> Iterator[None]:
    with on_signal.at_once("compiling"), log.compiling():
        yield


def _unsaved(saved: int, step: int) -> str:
    return "no step is lost" if step <= saved else f"loses steps {saved + 1} to {step}"


def _blocked_on(step: int, first: int) -> str:
    """What the training thread waits for while a step runs: it is one step ahead of the devices."""
    return phases_lib.COMPILATION if step == first else f"the devices to do step {step - 1}"
