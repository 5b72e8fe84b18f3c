"""Samples ids from logits in JAX, inside a compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mvjax.runtimes import interface


def sample(
    logits: Float[Array, "B vocabulary"], key: Key[Array, ""], sampling: interface.Sampling
) -> Int[Array, "B"]:
    """Returns one id per row: the argmax (greedy decoding), or a draw from softmax(logits / temperature)."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    k = logits.shape[-1]
    if sampling.top_k:
        k = min(k, sampling.top_k)
    largest, ids = jax.lax.top_k(logits, k)
    drawn = jax.random.categorical(key, largest / sampling.temperature)
    return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)
