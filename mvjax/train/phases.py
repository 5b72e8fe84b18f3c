"""Phases of the training loop: seconds per step in each, and a watchdog that says what blocks it."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jax

from mvjax import messages, run_folder
from mvjax.stores import notes as notes_lib
from mvjax.train import distributed

Phase = Literal["data", "step", "callbacks", "checkpoint"]
PHASES: tuple[Phase, ...] = get_args(Phase)
RECENT = 50  # steps over which times are averaged
COMPILATION = "the compilation of the step"  # a task that may take minutes
SOON = 6.0  # seconds after which a wait for another process is reported
_START = 15.0  # seconds of a task after which one process that starts says what it does
_DEVICES = (
    "waiting for the devices"  # of several processes: for one that is blocked on something else
)


class DoneStep(NamedTuple):
    """A step that the devices have finished, with its metrics."""

    step: int
    metrics: Mapping[str, jax.Array]


class Phases:
    """What the training thread does, by name; use as `with phases("data", "the data of step 7"):`."""

    def __init__(self, timer: StepTimer, watchdog: Watchdog) -> None:
        self._timer, self._watchdog = timer, watchdog

    @contextlib.contextmanager
    def __call__(self, phase: Phase, task: str) -> Iterator[None]:
        """Adds the time inside to a phase, and lets the watchdog name the task if it takes too long."""
        within = None
        if jax.process_count() > 1 and task != COMPILATION:
            within = max(SOON, 3 * sum(self._timer.seconds.values()))
        with self._timer.phase(phase), self._watchdog.task(task, within=within):
            yield


class StepTimer:
    """Mean seconds per step by phase, over recent steps; the first step, mostly compilation, is left out.

    `data`: reading the next batch and sending it to the devices. `callbacks`: evaluation and samples during
    training. `checkpoint`: copying the values of a checkpoint, and finishing the one before. `step`: the rest
    of the wall time, in which the training thread waits for the devices.
    """

    def __init__(self) -> None:
        self._recent: collections.deque[dict[Phase, float]] = collections.deque(maxlen=RECENT)
        self._current = dict.fromkeys(PHASES, 0.0)
        self._began = time.monotonic()
        self._compiled = False

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Adds the time inside to a phase of the current step."""
        began = time.monotonic()
        yield
        self._current[phase] += time.monotonic() - began

    def end_step(self) -> None:
        """Ends the current step."""
        now = time.monotonic()
        others = sum(seconds for phase, seconds in self._current.items() if phase != "step")
        self._current["step"] = now - self._began - others
        if self._compiled:
            self._recent.append(self._current)
        self._compiled = True
        self._current, self._began = dict.fromkeys(PHASES, 0.0), now

    @property
    def seconds(self) -> dict[Phase, float]:
        """Mean seconds per step by phase; empty before the second step."""
        if not self._recent:
            return {}
        n = len(self._recent)
        return {phase: sum(step[phase] for step in self._recent) / n for phase in PHASES}


class _Task:
    """What the training thread is blocked on, since when, and after which wait it is reported next."""

    def __init__(self, name: str, began: float, due: float) -> None:
        self.name, self.began, self.due, self.reported = name, began, due, False


class Watchdog:
    """A thread that reports what the training thread is blocked on; use as a context manager.

    Each process of several writes what it is blocked on into the run folder, and the first one prints what
    all of them wrote: those blocked on the devices wait for one that is blocked on something else, or that
    wrote nothing.
    """

    def __init__(
        self, folder: Path, *, seconds: float, say: Callable[[str], None], stacks: bool = False
    ) -> None:
        """A task is reported after so many seconds, again after twice that wait, and so on.

        `say` prints a report; `stacks` adds the stack of every thread.
        """
        self._file = folder / run_folder.WAITING / f"{jax.process_index():05d}.txt"
        self._seconds, self._say, self._stacks = seconds, say, stacks
        self._hosts: Sequence[str] = ()  # of all processes
        self._task: _Task | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        """Starts the thread; removes the file that a killed session left."""
        if jax.process_count() > 1:
            self._hosts = distributed.hosts()
        notes_lib.remove(self._file)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the thread."""
        self._closed.set()
        self._thread.join()
        notes_lib.remove(self._file)

    @contextlib.contextmanager
    def task(self, name: str, *, within: float | None = None) -> Iterator[None]:
        """Names what is done inside, such as "the data of step 7"; `within` reports it earlier."""
        due = min(self._seconds, within or self._seconds)
        self._task = task = _Task(name, time.monotonic(), due)
        try:
            yield
        finally:
            self._task = None
        if task.reported:
            self._say(f"{name}: done after {time.monotonic() - task.began:.0f} s")
            notes_lib.remove(self._file)

    def starting(self, name: str) -> contextlib.AbstractContextManager[None]:
        """`task` before the first step."""
        return self.task(name, within=SOON if jax.process_count() > 1 else _START)

    def check(self) -> None:
        """Reports the current task if it is due; the thread calls this every second or oftener."""
        task = self._task  # which the training thread may take away meanwhile
        if task is not None and (waited := time.monotonic() - task.began) >= task.due:
            task.due, task.reported = 2 * waited, True
            self._report(f"{waited:.0f} s without a step: waiting for {task.name}")

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 8, 1.0)):
            self.check()

    def _report(self, text: str) -> None:
        if jax.process_count() > 1:
            with contextlib.suppress(OSError):  # the disk may be why
                note = f"{distributed.name()} ({socket.gethostname()}): {text}"
                notes_lib.write(self._file, note)
            if jax.process_index() == 0:
                self._closed.wait(min(self._seconds / 2, 1.5))  # the others write theirs
                notes = [self._written(index) for index in range(jax.process_count())]
                blocking = [note for note in notes if _DEVICES not in note]
                text = "no step for long"
                if 0 < len(blocking) < len(notes):
                    text += f", because of {messages.names(n.partition(':')[0] for n in blocking)}"
                notes.sort(key=lambda note: note not in blocking)
                text += f"; what each process is blocked on:{messages.lines(notes)}"
        self._say(text)
        if self._stacks:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)

    def _written(self, index: int) -> str:
        try:
            return notes_lib.read(self._file.with_name(f"{index:05d}.txt"))
        except OSError:
            host = f" ({self._hosts[index]})" if self._hosts else ""
            return f"process {index}{host}: nothing; it steps, hangs elsewhere, or is gone"
