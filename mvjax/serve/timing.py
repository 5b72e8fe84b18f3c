"""How late a conversation's frames are: percentiles, the worst, missed deadlines, how far it falls behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mvjax import types


@dataclasses.dataclass(frozen=True)
class Latency:
    """Of one conversation, in milliseconds.

    Attributes:
      worst_frame: index of the maximum.
      missed: frames beyond 80 ms.
      deficit: frames that would still wait for the model at the end if the user's came every 80 ms.
    """

    frames: int
    p50: float
    p95: float
    p99: float
    maximum: float
    worst_frame: int
    missed: int
    deficit: int


def latency(seconds: Sequence[float]) -> Latency:
    """Returns the statistics of what each frame took, back to back."""
    times = np.asarray(seconds)
    p50, p95, p99 = (np.percentile(times, [50, 95, 99]) * 1e3).tolist()
    return Latency(
        frames=len(times),
        p50=p50,
        p95=p95,
        p99=p99,
        maximum=float(times.max() * 1e3),
        worst_frame=int(times.argmax()),
        missed=int((times > types.FRAME_SECONDS).sum()),
        deficit=_deficit(times),
    )


def _deficit(times: np.ndarray) -> int:
    """Returns how many frames have come, and are not answered, when the last one of `times` has come."""
    done, arrivals = [], np.arange(len(times)) * types.FRAME_SECONDS
    end = 0.0
    for arrival, took in zip(arrivals, times):
        end = max(end, arrival) + took
        done.append(end)
    return int((np.array(done[:-1]) > arrivals[-1]).sum())
