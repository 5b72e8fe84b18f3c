"""Steps the toy model frame by frame, as the JAX runtime does, to compare it with whole sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import toy

from mvjax.runtimes.jax import frames, kv_cache
from mvjax.runtimes.jax import weights as weights_lib


def backbone(columns, kv, sees=None, *, config=toy.MODEL, weights=None):
    """What the backbone computes for delayed ids [B, K, T], and `sees` [B, T] (None: all), frame by frame."""
    stacked = toy.params(config) if weights is None else weights
    unstacked = jax.jit(lambda params: weights_lib.unstack(params, config))(stacked)
    images = None if kv is None else kv_cache.images(config, kv)

    @jax.jit
    def step(caches, column, t, sees):
        position = jnp.full(len(column), t, jnp.int32)
        return frames.backbone(
            config, unstacked, caches, column, position, images=images, sees=sees
        )

    B, _, T = columns.shape
    caches = kv_cache.empty(config, rows=B, dtype=config.dtype)
    sees = np.ones((B, T), bool) if sees is None else sees
    for t in range(T):
        caches, out = step(caches, columns[:, :, t], jnp.int32(t), sees[:, t])
        yield out


def depth(z, text, forced=None, *, config=toy.MODEL, weights=None):
    """(codes, logits) of one frame, by greedy decoding but for forced codes."""
    stacked = toy.params(config) if weights is None else weights
    free = np.full((len(z), config.codebooks_out), -2, np.int32)

    @jax.jit
    def run(params, forced):
        return frames.depth(
            config,
            weights_lib.unstack(params, config).depth,
            z,
            text,
            lambda logits, level: jnp.argmax(logits, axis=-1).astype(jnp.int32),
            forced=forced,
        )

    return run(stacked, free if forced is None else forced)
