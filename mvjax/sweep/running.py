"""Runs the trials of a sweep as plain commands, several at a time; what is done already is not done again."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import mvjax
from mvjax import locks, run_folder
from mvjax.config import study as study_lib
from mvjax.stores import places
from mvjax.sweep import board as board_lib
from mvjax.sweep import cost, outcome, sweep_store, trials

_LOOK_AGAIN = 1.0  # seconds until a run that another process works on is tried again
_ERROR_LINES, _ERROR_BYTES = 12, 65536  # of a failed command, from its message on, or its last
_HINT = "(MVJAX_DEBUG"  # how to see more, of the command itself


class Failed(Exception):
    """A command failed; the text is the last that it printed."""


class Stopped(Exception):
    """The sweep was stopped while a command ran, or before it began."""


def left(sweep: trials.Sweep, run: trials.TrialRun) -> list[list[str]]:
    """Returns the commands of a run that are not done; raises ValueError as `outcome.trained`."""
    asked = sweep.study.benchmarks
    if not outcome.trained(run):
        return [sweep.train(run), *(sweep.evaluate(run, one) for one in asked)]
    return [sweep.evaluate(run, one) for one in asked if not outcome.evaluated(sweep, run, one)]


def command_lines(sweep: trials.Sweep) -> list[str]:
    """Returns a line for a shell for each run that is not done: its commands with && between them."""
    commands = [left(sweep, run) for run in sweep.runs()]
    return [" && ".join(map(trials.shell, one)) for one in commands if one]


class Runner:
    """Works on the runs of a sweep, `jobs` at a time; `start` returns at once, and `join` when all are done.

    Killed (SIGKILL), it leaves commands that go on; they hold the locks of their runs, so that the next sweep
    waits for them.
    """

    def __init__(
        self, sweep: trials.Sweep, board: board_lib.Board, *, jobs: int, threads: int
    ) -> None:
        self._sweep, self._board, self._threads = sweep, board, threads
        self._costs = cost.Costs()
        self._waiting = collections.deque(sweep.runs())
        self._children: dict[int, subprocess.Popen] = {}
        self._mutex, self._stopping = threading.Lock(), threading.Event()
        self._began = time.time()
        names = [f"sweep {n}" for n in range(min(jobs, len(self._waiting)))]
        self._workers = [threading.Thread(target=self._work, name=n, daemon=True) for n in names]

    def start(self) -> None:
        """Begins."""
        for worker in self._workers:
            worker.start()

    def join(self, seconds: float) -> bool:
        """Waits so long at most; returns whether everything is done, or has stopped."""
        until = time.monotonic() + seconds
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
        return not any(worker.is_alive() for worker in self._workers)

    def stop(self) -> None:
        """Lets every training save a checkpoint and end; starts nothing more."""
        self._stopping.set()
        with self._mutex:
            for child in self._children.values():
                child.send_signal(signal.SIGTERM)

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self._mutex:
                if not self._waiting:
                    return
                run = self._waiting.popleft()
            try:
                run.folder.mkdir(parents=True, exist_ok=True)
                lock_file = run.folder / outcome.LOCK
                with locks.held(lock_file, shared=True) as lock, sweep_store.held(run):
                    if by := locks.holder(run.folder / run_folder.LOCK):
                        raise locks.Taken(by)  # a plain `mvjax train`
                    self._run(run, lock)
            except locks.Taken as taken:
                self._board.set(run, board_lib.ELSEWHERE, str(taken))
                with self._mutex:
                    self._waiting.append(run)
                self._stopping.wait(_LOOK_AGAIN)
            except Stopped:
                self._board.set(run, board_lib.STOPPED)
            except OSError as error:  # trial.json cannot be written
                self._board.set(run, board_lib.FAILED, str(error))

    def _run(self, run: trials.TrialRun, lock: int) -> None:
        """Does what is left of a run and writes its trial.json."""
        told = outcome.read(run)
        if not (told.state == "failed" and self._failed_meanwhile(run)):
            try:
                commands = left(self._sweep, run)
                if commands or told.state != "finished":
                    self._do(run, commands, lock, told)
            except Stopped:
                told.state = "stopped"
                outcome.write(run, told)
                raise
            except (Failed, ValueError, OSError, RuntimeError) as error:
                told.state, told.error = "failed", str(error)
                outcome.write(run, told)
        state = board_lib.FAILED if told.state == "failed" else board_lib.FINISHED
        self._board.set(run, state, told.error or "", self._scores(run))

    def _do(
        self, run: trials.TrialRun, commands: list[list[str]], lock: int, told: outcome.Outcome
    ) -> None:
        told.state, told.error = "running", None
        outcome.write(run, told)
        for command in commands:
            self._board.set(run, command[1])
            self._call(run, command, lock, told)
            if command[1] == board_lib.TRAINS and not outcome.trained(run):
                raise Failed("mvjax train: stopped by a signal; the same sweep continues")
        if undone := left(self._sweep, run):
            raise Failed(f"not done, though no command failed: {trials.shell(undone[0])}")
        for name, value in self._costs.of(run).items():
            setattr(told, name, value)
        told.state = "finished"
        outcome.write(run, told)

    def _failed_meanwhile(self, run: trials.TrialRun) -> bool:
        """Whether another sweep saw it fail while this one waited; what failed earlier is tried again."""
        return (run.folder / outcome.TRIAL).stat().st_mtime > self._began

    def _call(
        self, run: trials.TrialRun, command: Sequence[str], lock: int, told: outcome.Outcome
    ) -> None:
        path, began = run.folder / outcome.LOG, time.monotonic()
        with path.open("ab") as log:
            log.write(f"$ {trials.shell(command)}\n".encode())
            log.flush()
            start = log.tell()
            with self._mutex:
                if self._stopping.is_set():
                    raise Stopped
                child = subprocess.Popen(
                    [sys.executable, "-m", mvjax.__name__, *command[1:]],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=self._environment(), pass_fds=(lock,), start_new_session=True,
                )  # fmt: skip
                self._children[child.pid] = child
        status = child.wait()
        with self._mutex:
            del self._children[child.pid]
        told.seconds = round(told.seconds + time.monotonic() - began, 2)
        sweep_store.refresh(run)
        if self._stopping.is_set():
            raise Stopped
        if status:
            raise Failed(_failure(path, start, command, status))

    def _environment(self) -> dict[str, str]:
        """Bounds the threads of a command; what one trial compiles the others load."""
        compiled = {
            "JAX_COMPILATION_CACHE_DIR": str(_compiled(self._sweep.out)),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        }
        threads = dict.fromkeys(("PJRT_NPROC", "OMP_NUM_THREADS"), str(self._threads))
        return compiled | dict(os.environ) | threads

    def _scores(self, run: trials.TrialRun) -> str:
        """Returns the means of every benchmark, such as "digits text 95.1 audio 80.2"."""
        parts = []
        for asked in self._sweep.study.benchmarks:
            row = (outcome.scores(run, asked) or {"table": [{}]})["table"][-1]
            shown = asked.prompts or ("text", "audio")
            values = [f"{p} {100 * row[p]:.1f}" for p in shown if isinstance(row.get(p), float)]
            parts.append(" ".join([_short(asked), *values]))
        return ", ".join(parts)


def _compiled(out: Path) -> Path:
    """Where the trials keep what they compile; those of a store here, for all sweeps."""
    return (out.absolute() if places.url(out) is None else places.cache()) / "compiled"


def _short(asked: study_lib.Asked) -> str:
    return Path(asked.benchmark).stem


def _failure(log: Path, start: int, command: Sequence[str], status: int) -> str:
    """The last lines that a command printed, else how it ended."""
    with log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - _ERROR_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    lines = [line for line in lines if not line.startswith(_HINT)]
    name = trials.shell(command[:2])
    told = [n for n, line in enumerate(lines) if line.startswith(f"{name}: ")]
    lines = lines[told[-1] :][:_ERROR_LINES] if told else lines[-_ERROR_LINES:]
    ended = f"status {status}"
    if status < 0:
        ended = f"killed by {signal.Signals(-status).name}"
        if -status == signal.SIGKILL:
            ended += " (the memory is full?)"
    return "\n".join([f"{name}: {ended}", *lines])
