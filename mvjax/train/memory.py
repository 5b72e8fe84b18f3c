"""Peak memory of this process: on the host, and of the devices that it drives. GB are 1e9 bytes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from typing import Any


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
