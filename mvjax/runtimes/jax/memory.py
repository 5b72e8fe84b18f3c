"""JAX's accelerator: its name, what reads its memory, the most of it that was used."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def device() -> str | None:
    """Returns the name of the accelerator; None on a CPU."""
    found = jax.devices()[0]
    return None if found.platform == "cpu" else found.device_kind


def reader(size: int) -> Callable[[], object]:
    """Returns what reads `size` bytes of the accelerator's memory, and waits for it."""
    values, add = jnp.ones(size // 4, jnp.float32), jax.jit(jnp.sum)
    return lambda: add(values).block_until_ready()


def peak() -> int | None:
    """Returns the most bytes that were in use; None where the device does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
