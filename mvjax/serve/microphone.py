"""The user's audio between the socket and the model: cut to frames, never more than a stated number of them.

When more frames wait than `limit`, the oldest whole ones are dropped: a stall costs what was said in it, not
latency for the rest of the conversation.
"""

from __future__ import annotations

import collections
import threading
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from mvjax import types


class Heard(NamedTuple):
    """A frame of the user.

    Attributes:
      pcm: 1920 samples.
      at: the clock when its last sample came, in seconds.
    """

    pcm: Float32[np.ndarray, "1920"]
    at: float


class Microphone:
    """Filled by the event loop, emptied by the engine."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._frames: collections.deque[Heard] = collections.deque()
        self._rest = np.zeros(0, np.float32)
        self.skipped = 0  # frames dropped

    def put(self, pcm: Float32[np.ndarray, " samples"], now: float) -> bool:
        """Takes audio that came at a time; returns whether a frame is ready."""
        samples = np.concatenate([self._rest, pcm])
        whole = len(samples) // types.FRAME_SAMPLES * types.FRAME_SAMPLES
        self._rest = samples[whole:]
        frames = samples[:whole].reshape(-1, types.FRAME_SAMPLES)
        with self._lock:
            self._frames.extend(Heard(frame, now) for frame in frames)
            while len(self._frames) > self._limit:
                self._frames.popleft()
                self.skipped += 1
            return bool(self._frames)

    def take(self) -> Heard | None:
        """Returns the oldest frame, if there is one."""
        with self._lock:
            return self._frames.popleft() if self._frames else None

    def keep_newest(self) -> None:
        """Drops what waits, but for the newest frame."""
        with self._lock:
            while len(self._frames) > 1:
                self._frames.popleft()
                self.skipped += 1

    def __len__(self) -> int:
        return len(self._frames)
