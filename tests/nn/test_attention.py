"""The window of self-attention, by its effect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvjax.config import schema
from mvjax.nn import attention
from mvjax.runtimes.jax import kv_cache

CONTEXT = 4


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("distance", [CONTEXT - 1, CONTEXT, CONTEXT + 1])
def test_exact_key_set(distance):
    """Frame q sees k exactly if k <= q and q - k < context."""
    T = H = 9
    q, k = jnp.asarray(noise(2, T, 3, H)), jnp.asarray(noise(2, T, 3, H, seed=1))
    # one-hot values: the output of frame q is its weight on every key
    v = jnp.broadcast_to(jnp.eye(T)[None, :, None, :], (2, T, 3, T))
    weights = attention.attend_by_kernel(q, k, v, context=CONTEXT)
    for frame in range(T):
        key = frame - distance
        if key >= 0:
            assert np.all((weights[:, frame, :, key] > 0) == (distance < CONTEXT))
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


BACKBONE = schema.BackboneConfig(width=24, layers=2, heads=3, context=CONTEXT)


@pytest.mark.parametrize("has_self", [True, False])
def test_the_frame_itself_counts_or_comes_on_top(has_self):
    """kyuteye_pt sees `context` keys, Rust and MLX one more; reference 2.4."""
    config = dataclasses.replace(BACKBONE, context_has_self=has_self)
    keys = CONTEXT if has_self else CONTEXT + 1
    T = 2 * keys + 1
    module = attention.SelfAttention(config)
    x = jnp.asarray(noise(2, T, 24))
    variables = jax.jit(module.init)(jax.random.key(0), x)

    def last(x):
        return module.apply(variables, x)[:, -1].sum()

    moved = np.any(np.asarray(jax.jit(jax.grad(last))(x)) != 0, axis=(0, 2))
    np.testing.assert_array_equal(moved, np.arange(T) >= T - keys)
    whole = schema.ModelConfig(backbone=config)
    cache = kv_cache.empty(whole, rows=2, dtype="float32")[0]
    assert cache.k.shape == (6, keys, 8)


def test_causality_by_gradient():
    q, k, v = (jnp.asarray(noise(2, 7, 3, 5, seed=s)) for s in range(3))

    def output(k, v, t):
        return attention.attend_by_kernel(q, k, v, context=CONTEXT)[:, t].sum()

    gradients = jax.jit(jax.grad(output, argnums=(0, 1)))
    for t in range(7):
        moved = np.zeros(7, bool)
        for gradient in gradients(k, v, t):
            moved |= np.any(np.asarray(gradient) != 0, axis=(0, 2, 3))
        frames = np.arange(7)
        np.testing.assert_array_equal(moved, (frames <= t) & (t - frames < CONTEXT))
