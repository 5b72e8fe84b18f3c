"""Memory of this process: its peak, of the host and of the devices (GB are 1e9 bytes), and what it keeps."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterable
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed() -> None:
    """Has malloc keep what is freed, up to 2 GB, for the next block of memory.

    glibc otherwise gives each large block back, such as what a compiled step on a CPU works in, and the
    kernel then zeroes it page by page in the next step: a fifth of the time of a small model's step. Does
    nothing where malloc is another. To be called before much is allocated.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)  # only the first arena can grow past 64 MB
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def host_peak_gb() -> float:
    """Returns the peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def device_peak_gb() -> float | None:
    """Returns the peak HBM in use on one of this process's devices; None where none reports it, as a CPU."""
    import jax  # here: who asks for the host's peak may be without

    peak = device_peak_bytes(jax.local_devices())
    return None if peak is None else peak / 1e9


def device_peak_bytes(devices: Iterable[Any]) -> float | None:
    """Returns the peak bytes in use on the fullest of these devices; None where none reports it."""
    reports = [stats for device in devices if (stats := device.memory_stats())]
    peaks = [stats["peak_bytes_in_use"] for stats in reports if "peak_bytes_in_use" in stats]
    return float(max(peaks)) if peaks else None
