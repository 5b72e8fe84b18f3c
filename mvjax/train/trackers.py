"""Where metrics, tables and sounds of a run go: one interface, and a guard so that none stops the run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

WAITING = 1000  # calls that a slow tracker may be behind
CLOSING = 30.0  # seconds that it may take after the run


class Sound(NamedTuple):
    """A sound file of a table's cell."""

    path: Path


Row = Mapping[str, str | int | float | Sound | None]  # {column: cell}


class Tracker(Protocol):
    """Takes what a run logs. A resumed run's calls begin at the step after its checkpoint."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes a line of metrics.jsonl without its step: numbers, null, and lists of them."""
        ...

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Takes a table of a step, such as the scores of an evaluation or a few of its answers."""
        ...

    def close(self) -> None:
        """Ends this session of the run."""
        ...


class Guarded:
    """A tracker in a thread of its own. One that fails or falls behind is said once, and off from then on."""

    def __init__(
        self, name: str, make: Callable[[], Tracker], *, say: Callable[[str], None]
    ) -> None:
        """Starts the thread, in which the tracker is also made."""
        self._name, self._say = name, say
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(WAITING)
        self._is_off, self._lock = False, threading.Lock()
        self._thread = threading.Thread(
            target=self._work, args=(make,), name=f"{name} tracker", daemon=True
        )
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hands the metrics over, without waiting."""
        self._put(lambda tracker: tracker.log(step, metrics))

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Hands the table over, without waiting."""
        self._put(lambda tracker: tracker.table(step, name, rows))

    def close(self) -> None:
        """Waits for what was handed over, for a limited time."""
        self._put(None)
        self._thread.join(CLOSING)
        if self._thread.is_alive():
            self._turn_off(f"it was not done {CLOSING:.0f} s after the run")

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        if self._is_off:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._turn_off(f"it is too slow: {WAITING} calls wait")

    def _work(self, make: Callable[[], Tracker]) -> None:
        tracker = None
        try:
            tracker = make()
            while (call := self._calls.get()) is not None and not self._is_off:
                call(tracker)
        except BaseException as error:  # SystemExit of a library, too
            self._turn_off(f"{type(error).__name__}: {error}")
        try:
            if tracker is not None:
                tracker.close()
        except BaseException as error:
            self._turn_off(f"{type(error).__name__}: {error}")

    def _turn_off(self, why: str) -> None:
        with self._lock:
            was_off, self._is_off = self._is_off, True
        if not was_off:
            self._say(f"tracker {self._name} is off from here on, and the run goes on: {why}")


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the curves of metrics: one a number, and NAME/00 ... of a list; null is left out."""
    curves = {}
    for name, value in metrics.items():
        if isinstance(value, list):
            curves |= {f"{name}/{i:02}": float(v) for i, v in enumerate(value) if v is not None}
        elif value is not None:
            curves[name] = float(value)
    return curves


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Returns the columns of a table and its lines; of a sound, the file's name."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[row.get(name) for name in columns] for row in rows]
    return columns, [[c.path.name if isinstance(c, Sound) else c for c in line] for line in lines]


def sounds(row: Row) -> list[Sound]:
    """Returns the sounds of a row."""
    return [cell for cell in row.values() if isinstance(cell, Sound)]
