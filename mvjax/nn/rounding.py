"""Arithmetic of a narrower float type, made in float32 with a rounding after each operation.

A runtime that computes a chain of elementwise operations in bfloat16 rounds in between. XLA may keep
float32 inside such a chain when it fuses it, so to imitate the runtime the roundings are explicit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32


def to(x: Float32[Array, "*batch"], dtype: jnp.dtype | type) -> Float32[Array, "*batch"]:
    """Returns x rounded to the nearest value of `dtype`, still as float32."""
    if jnp.dtype(dtype) == jnp.float32:
        return x
    kind = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
