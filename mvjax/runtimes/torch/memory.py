"""PyTorch's GPU: its name, what reads its memory, the most of it that was used."""

from __future__ import annotations

from collections.abc import Callable

import torch


def device() -> str | None:
    """Returns the name of the GPU; None where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def reader(size: int) -> Callable[[], object]:
    """Returns what reads `size` bytes of the GPU's memory, and waits for it."""
    values = torch.ones(size // 4, device="cuda")
    return lambda: values.sum().item()


def peak() -> int:
    """Returns the most bytes that were in use."""
    return int(torch.cuda.max_memory_allocated())
