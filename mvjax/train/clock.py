"""Where the time of a step goes, how well the devices are used, and how much memory was needed."""

from __future__ import annotations

import collections
import contextlib
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

RECENT = 50  # steps that the shown speed is a mean of
PARTS: tuple[str, ...] = ("data", "step", "checkpoint")


class Settled(NamedTuple):
    """A step that is done."""

    step: int
    metrics: Mapping[str, jax.Array]


class Clock:
    """Seconds a step over recent steps, by what the training thread waited for.

    `data`: until the next batch was read and sent. `checkpoint`: until the values of a checkpoint were copied
    and the one before it was written. `step`: the rest, which is waiting for the devices. The first step is
    left out, because it is mostly compilation.
    """

    def __init__(self) -> None:
        self._recent: collections.deque[dict[str, float]] = collections.deque(maxlen=RECENT)
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._began = time.monotonic()
        self._compiled = False

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Counts what is done inside as `data` or `checkpoint`."""
        began = time.monotonic()
        yield
        self._spent[part] += time.monotonic() - began

    def tick(self) -> None:
        """Ends a step."""
        now = time.monotonic()
        self._spent["step"] = now - self._began - sum(self._spent.values())
        if self._compiled:
            self._recent.append(self._spent)
        self._compiled = True
        self._spent, self._began = dict.fromkeys(PARTS, 0.0), now

    @property
    def seconds(self) -> dict[str, float]:
        """Mean seconds a step by part; empty before the second step."""
        if not self._recent:
            return {}
        return {
            part: sum(step[part] for step in self._recent) / len(self._recent) for part in PARTS
        }

    @property
    def seconds_per_step(self) -> float:
        """The sum over the parts; NaN before the second step."""
        return sum(self.seconds.values()) if self._recent else math.nan


def host_memory_gb() -> float:
    """Returns the most memory that this process has held on the host."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def device_memory_gb() -> float | None:
    """Returns the most memory that one of this process's devices has held; None where none tells."""
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    peaks = [stats["peak_bytes_in_use"] for stats in known if "peak_bytes_in_use" in stats]
    return max(peaks) / 2**30 if peaks else None
