"""Latency of a conversation's frames: from a frame's last sample at the server to the answer to it."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from mvjax import types

_WINDOW = 750  # frames, a minute


class Meter:
    """The last minute in percentiles, and all frames in counts."""

    def __init__(self) -> None:
        self._seconds: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self.frames = 0
        self.missed = 0  # frames whose latency was more than a frame

    def add(self, seconds: float) -> bool:
        """Takes the latency of the next frame; returns whether it missed its deadline."""
        self._seconds.append(seconds)
        self.frames += 1
        missed = seconds > types.FRAME_SECONDS
        self.missed += missed
        return missed

    def status(self) -> dict[str, Any]:
        """Returns the numbers for a client, in ms."""
        p50, p99 = np.percentile(self._seconds, (50, 99)) if self._seconds else (0.0, 0.0)
        return {
            "frame": self.frames,
            "p50_ms": round(1000 * float(p50), 1),
            "p99_ms": round(1000 * float(p99), 1),
            "missed": self.missed,
        }
