"""Says what a run is waiting for, and where, when a step takes far longer than it should."""

from __future__ import annotations

import contextlib
import faulthandler
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from mvjax.train import distributed

WAITING = "waiting"  # folder: what each process waits for, while it is too long


class _Task:
    """What the training thread does, since when, and when the next word about it is due."""

    def __init__(self, what: str, due: float) -> None:
        self.what, self.began, self.due, self.told = what, time.monotonic(), due, False

    @property
    def waited(self) -> float:
        return time.monotonic() - self.began


class Watchdog:
    """A thread that looks at the clock while the training thread waits; use as a context manager.

    Each process of several writes what it waits for into the run folder, and the first one prints what all
    wrote: those that wait for the devices wait for one that does not, or that wrote nothing.
    """

    def __init__(
        self, folder: Path, *, seconds: float, say: Callable[[str], None], stacks: bool = False
    ) -> None:
        """`seconds` of waiting are silent; `stacks` also prints where every thread stands."""
        self._file = folder / WAITING / f"{jax.process_index():05d}.txt"
        self._seconds, self._say, self._stacks = seconds, say, stacks
        self._task: _Task | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        """Starts watching; a note that a killed session left is gone."""
        self._file.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops watching."""
        self._closed.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Names what is done inside, such as "the data of step 7"."""
        self._task = task = _Task(what, self._seconds)
        yield
        self._task = None
        if task.told:
            self._say(f"{what}: done after {task.waited:.0f} s")
            self._file.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._closed.wait(self._seconds / 8):
            task = self._task
            if task is not None and task.waited >= task.due:
                task.due, task.told = 2 * task.waited, True
                self._report(task)

    def _report(self, task: _Task) -> None:
        text = f"{task.waited:.0f} s without a step: waiting for {task.what}"
        if jax.process_count() > 1:
            with contextlib.suppress(OSError):  # the disk may be why
                self._file.parent.mkdir(exist_ok=True)
                self._file.write_text(f"{distributed.name()} ({socket.gethostname()}): {text}")
            if jax.process_index() == 0:
                self._closed.wait(self._seconds / 2)  # the others write theirs
                text = "\n  ".join(["no step for long; what each process waits for:", *self._all()])
        self._say(text)
        if self._stacks:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)

    def _all(self) -> list[str]:
        lines = []
        for index in range(jax.process_count()):
            try:
                lines.append((self._file.parent / f"{index:05d}.txt").read_text())
            except OSError:
                lines.append(f"process {index}: nothing; it steps, hangs elsewhere, or is gone")
        return lines
