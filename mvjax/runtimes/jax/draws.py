"""`runtimes.sampling` in JAX: ids of a batch from logits, by the host's uniform numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mvjax.nn import layers
from mvjax.runtimes import interface, sampling


def penalized(
    logits: Float[Array, "B V"],
    recent: Int[Array, "B recent"],
    penalty: Float[Array, "B"],
    bonus: Float[Array, "B"],
) -> Float[Array, "B V"]:
    """As `sampling.penalized`, row by row."""

    def reduced() -> Float[Array, "B V"]:
        rows = jnp.arange(len(logits), dtype=jnp.int32)[:, None]
        values = jnp.take_along_axis(logits, jnp.maximum(recent, 0), axis=1)
        by = penalty[:, None]
        values = jnp.where(values >= 0, values / by, values * by)
        at = jnp.where(recent == sampling.NONE, logits.shape[1], recent)  # past the end: dropped
        return logits.at[rows, at].set(values, mode="drop")  # an id that is there twice: the same

    is_pad = jnp.arange(logits.shape[1], dtype=jnp.int32) == sampling.PAD
    logits = jax.lax.cond(jnp.any(penalty != 1), reduced, lambda: logits)
    return logits + jnp.where(is_pad[None], bonus[:, None], 0.0)


def choose(
    logits: Float[Array, "B vocabulary"],
    uniform: Float[Array, "B"],
    temperature: Float[Array, "B"],
    top_k: Int[Array, "B"],
) -> Int[Array, "B"]:
    """As `sampling.choose`, row by row."""
    best = layers.argmax(logits)
    hot = temperature > 0

    def draw() -> Int[Array, "B"]:
        scaled = logits.astype(jnp.float32) / jnp.where(hot, temperature, 1.0)[:, None]
        scaled = jnp.where(scaled < _least(scaled, top_k)[:, None], -jnp.inf, scaled)
        p = jnp.exp(scaled - jnp.max(scaled, axis=-1, keepdims=True))
        # sums in another order than numpy's need not rise strictly: an id of probability 0 is never drawn
        cumulative = jnp.where(p > 0, jnp.cumsum(p, axis=-1), 0.0)
        passed = cumulative > (uniform * jnp.max(cumulative, axis=-1))[:, None]
        return jnp.where(hot, jnp.argmax(passed, axis=-1).astype(jnp.int32), best)

    return jax.lax.cond(jnp.any(hot), draw, lambda: best)


def _least(scaled: Float[Array, "B vocabulary"], top_k: Int[Array, "B"]) -> Float[Array, "B"]:
    """Returns the `top_k`-th largest of each row; 0: the least of all."""
    size = scaled.shape[-1]
    most = min(size, interface.MAX_TOP_K)
    some = (top_k > 0) & (top_k < size)

    def find() -> Float[Array, "B"]:
        largest = jax.lax.top_k(scaled, most)[0]
        at = jnp.clip(top_k - 1, 0, most - 1)
        return jnp.where(some, jnp.take_along_axis(largest, at[:, None], axis=-1)[:, 0], -jnp.inf)

    return jax.lax.cond(jnp.any(some), find, lambda: jnp.full(len(scaled), -jnp.inf))
