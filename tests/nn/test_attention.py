"""The window of self-attention, by its effect, whole and frame by frame."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvjax.config import schema
from mvjax.nn import attention

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


@pytest.fixture(scope="module")
def run():
    """A jitted module with its variables: (x, cache, layer) -> (y, cache)."""
    module = attention.SelfAttention(BACKBONE)
    x = jnp.zeros((2, 1, 24))
    variables = jax.jit(module.init)(jax.random.key(0), x, None, jnp.int32(0))
    return functools.partial(jax.jit(module.apply), variables)


@pytest.mark.parametrize("frames", [CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 2])
def test_ring_buffer_equals_the_whole_sequence(frames, run):
    x = jnp.asarray(noise(2, frames, 24))
    layer = jnp.int32(1)
    whole, _ = run(x, None, layer)
    cache = attention.init_cache(BACKBONE, batch=2, dtype="float32", slots=100)
    assert cache.k.shape == (2, 2, CONTEXT, 3, 8)
    for t in range(frames):
        y, cache = run(x[:, t : t + 1], cache, layer)
        np.testing.assert_allclose(y[:, 0], whole[:, t], atol=1e-5)
        cache = cache._replace(position=cache.position + 1)
    assert not np.any(cache.k[0])  # the other layer is left alone


@pytest.mark.parametrize("has_self", [True, False])
def test_the_frame_itself_counts_or_comes_on_top(has_self):
    """kyuteye_pt sees `context` keys, Rust and MLX one more; reference 2.4."""
    config = dataclasses.replace(BACKBONE, context_has_self=has_self)
    keys = CONTEXT if has_self else CONTEXT + 1
    T = 2 * keys + 1
    module = attention.SelfAttention(config)
    x = jnp.asarray(noise(2, T, 24))
    variables = jax.jit(module.init)(jax.random.key(0), x, None, jnp.int32(0))

    def last(x):
        return module.apply(variables, x, None, jnp.int32(0))[0][:, -1].sum()

    moved = np.any(np.asarray(jax.jit(jax.grad(last))(x)) != 0, axis=(0, 2))
    np.testing.assert_array_equal(moved, np.arange(T) >= T - keys)
    cache = attention.init_cache(config, batch=2, dtype="float32", slots=100)
    assert cache.k.shape[2] == keys


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
