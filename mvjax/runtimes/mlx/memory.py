"""MLX's device: its name, what reads its memory, the most of it that was used."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx


def device() -> str | None:
    """Returns the name of the GPU; None on the CPU."""
    if mx.default_device() == mx.Device(mx.cpu):
        return None
    return str(mx.device_info().get("device_name", "GPU"))


def reader(size: int) -> Callable[[], object]:
    """Returns what reads `size` bytes of the device's memory, and waits for it."""
    values = mx.ones(size // 4, mx.float32)
    mx.eval(values)
    return lambda: mx.eval(mx.sum(values))


def peak() -> int:
    """Returns the most bytes that were in use."""
    return int(mx.get_peak_memory())
