"""The machine that a benchmark ran on: processor, GPU, driver, versions, and how fast it reads its memory."""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGES = ("mvjax", "numpy", "torch", "torchao", "mlx", "jax", "jaxlib", "rustymimi")
_READ = 256 * 2**20  # bytes, more than a cache holds
_REPEATS = 7


def about() -> dict[str, Any]:
    """Returns what a result is worth nothing without."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "threads": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": _gpus(),
        "versions": versions,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if shutil.which("sysctl"):
        found = _output("sysctl", "-n", "machdep.cpu.brand_string")
        if found:
            return found
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Returns name, memory and driver of NVIDIA's GPUs, or of Apple's chip."""
    if platform.system() == "Darwin":
        return [f"{_cpu()} (Metal)"]
    if not shutil.which("nvidia-smi"):
        return []
    query = "--query-gpu=name,memory.total,driver_version"
    return [
        f"{line} driver"
        for line in _output("nvidia-smi", query, "--format=csv,noheader").splitlines()
    ]


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip()


def bandwidth(read: Callable[[], object], size: int) -> float:
    """Returns bytes/s, the median of several calls of what reads `size` bytes."""
    read()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    return size / statistics.median(times)


def memory_bandwidth() -> float:
    """Returns the bytes/s that all threads of the CPU read together."""
    threads = os.cpu_count() or 1
    parts = [np.ones(_READ // 4 // threads, np.float32) for _ in range(threads)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        read = functools.partial(_read_all, pool, parts)
        return bandwidth(read, sum(part.nbytes for part in parts))


def _read_all(pool: concurrent.futures.Executor, parts: list[np.ndarray]) -> None:
    list(pool.map(np.add.reduce, [part.view(np.uint64) for part in parts]))


def resident_memory() -> int | None:
    """Returns the bytes of this process in memory now; None where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return None
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
