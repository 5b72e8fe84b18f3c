"""Mimi's transformers: causal, windowed, LayerNorm and LayerScale, 25 steps a second.

Keys and values of the last `window` steps are carried from call to call; a whole signal is one call
that starts with none.

Source: moshi/modules/transformer.py. Differs: upstream's stream overwrites its oldest key with the second
step of a frame before the first step has met it, so that step sees context - 1 steps; ours sees `context`
of them, as upstream does over whole signals. With `context_has_self=False` they are context + 1, as in
rustymimi.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mvjax.config import frozen
from mvjax.nn import layers

_ROPE_BASE, _NORM_EPS, _LAYER_SCALE = 10_000.0, 1e-5, 0.01


class MimiKVCache(NamedTuple):
    """KV cache: rotated keys, and values, of the last `window` steps, oldest first."""

    k: Float[Array, "*layers B window N H"]
    v: Float[Array, "*layers B window N H"]


class MimiTransformer(nn.Module):
    """Stacked, scanned layers."""

    config: frozen.MimiConfig

    def setup(self) -> None:
        """Creates `blocks`."""
        scanned = nn.scan(
            MimiBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.layers,
        )
        self.blocks = scanned(self.config)

    def __call__(
        self, x: Float[Array, "B steps latent"], cache: MimiKVCache, position: Int[Array, ""]
    ) -> tuple[Float[Array, "B steps latent"], MimiKVCache]:
        """Runs the layers on the steps from `position` on."""
        return self.blocks(x, cache, jnp.broadcast_to(position, (self.config.layers,)))

    def start(self, batch: int) -> MimiKVCache:
        """The cache before the first step; its zeros are never attended to."""
        c = self.config
        zeros = jnp.zeros((c.layers, batch, c.window, c.heads, c.latent // c.heads))
        return MimiKVCache(zeros, zeros)


class MimiBlock(nn.Module):
    """x += scale1 attention(norm1(x)); x += scale2 mlp(norm2(x))."""

    config: frozen.MimiConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B steps latent"], cache: MimiKVCache, position: Int[Array, ""]
    ) -> tuple[Float[Array, "B steps latent"], MimiKVCache]:
        """Returns the result and this layer's cache after it; `cache` is without the axis L."""
        D = self.config.latent
        y = nn.LayerNorm(epsilon=_NORM_EPS, use_fast_variance=False, name="norm1")(x)
        y, cache = MimiAttention(self.config, name="attn")(y, cache, position)
        x = x + LayerScale(D, name="scale1")(y)
        y = nn.LayerNorm(epsilon=_NORM_EPS, use_fast_variance=False, name="norm2")(x)
        y = nn.Dense(self.config.hidden, use_bias=False, name="mlp_in")(y)
        y = nn.Dense(D, use_bias=False, name="mlp_out")(jax.nn.gelu(y, approximate=False))
        return x + LayerScale(D, name="scale2")(y), cache


class LayerScale(nn.Module):
    """A learned factor per channel."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Returns scale * x."""
        scale = self.param("scale", nn.initializers.constant(_LAYER_SCALE), (self.width,))
        return x * scale.reshape((1,) * (x.ndim - 1) + (-1,))


class MimiAttention(nn.Module):
    """Each step attends to itself and the window - 1 steps before it."""

    config: frozen.MimiConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B steps latent"], cache: MimiKVCache, position: Int[Array, ""]
    ) -> tuple[Float[Array, "B steps latent"], MimiKVCache]:
        """Returns the result and the cache after it."""
        _, T, D = x.shape
        N = self.config.heads
        H = D // N
        qkv = layers.Einsum((D, 3, N, H), fan_in=D, name="qkv")("BTD,DpNH->BTpNH", x)
        positions = (position + jnp.arange(T, dtype=jnp.int32))[None]
        q = layers.rope(qkv[:, :, 0], positions, base=_ROPE_BASE)
        k = layers.rope(qkv[:, :, 1], positions, base=_ROPE_BASE)
        k = jnp.concatenate([cache.k, k], axis=1)
        v = jnp.concatenate([cache.v, qkv[:, :, 2]], axis=1)
        u = windowed(q, k, v, position)
        y = layers.Einsum((N, H, D), fan_in=D, name="out")("BTNH,NHD->BTD", u)
        return y, MimiKVCache(k[:, T:], v[:, T:])


def windowed(
    q: Float[Array, "B steps N H"],
    k: Float[Array, "B seen N H"],
    v: Float[Array, "B seen N H"],
    position: Int[Array, ""],
) -> Float[Array, "B steps N H"]:
    """Softmax attention within a window, in time and memory linear in the number of steps.

    With a window of W, keys start W steps before the queries. Queries are cut into blocks of W,
    and each block meets its own block of keys and the one before:

        keys      |  0 .. W-1 |  W .. 2W-1 | 2W .. 3W-1 |      (of which those before step 0 are masked)
        queries               | block 0    | block 1    |

    `position` is the step of the first query; the first key and value are those of step `position - W`.
    """
    B, T, N, H = q.shape
    W = k.shape[1] - T
    P = min(T, W)  # block length
    n = -(-T // P)
    more = ((0, 0), (0, n * P - T), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, more) for x in (q, k, v))
    q = q.reshape(B, n, P, N, H)
    k, v = _by_block(k, n), _by_block(v, n)
    window = jnp.arange(n)[:, None] * P + jnp.arange(W + P)[None]
    # steps, from the window's start
    query, key = jnp.arange(P)[:, None] + W, jnp.arange(W + P)[None]
    near = (key <= query) & (key > query - W)
    real = window + position >= W  # not before step 0
    allowed = near[None] & real[:, None]
    logits = jnp.einsum("BbTNH,BbSNH->BbNTS", q, k) * H**-0.5
    logits = jnp.where(allowed[None, :, None], logits, jnp.finfo(jnp.float32).min)
    u = jnp.einsum("BbNTS,BbSNH->BbTNH", jax.nn.softmax(logits), v)
    return u.reshape(B, n * P, N, H)[:, :T]


def _by_block(x: Float[Array, "B seen N H"], blocks: int) -> Float[Array, "B blocks met N H"]:
    """Cuts keys or values into what each block of queries meets; of a gather XLA's CPU makes slow copies."""
    if blocks == 1:
        return x[:, None]
    cut = x.reshape(x.shape[0], blocks + 1, -1, *x.shape[2:])
    return jnp.concatenate([cut[:, :-1], cut[:, 1:]], axis=2)
