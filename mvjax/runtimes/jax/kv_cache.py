"""Keys and values that single frames attend to: KV caches as rings, and images."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mvjax.config import schema
from mvjax.nn import xattn

_BEGINNINGS = (128, 512)  # slots


class Held(NamedTuple):
    """Of one layer; rows and heads are one axis, as batched matmuls take them, or two, for devices to share.

    In a KV cache the frame at position p is in slot p % S; its key is rotated.
    """

    k: Float[Array, "BN S H"] | Float[Array, "B N S H"]
    v: Float[Array, "BN S H"] | Float[Array, "B N S H"]


def empty(
    config: schema.ModelConfig,
    *,
    rows: int,
    dtype: DTypeLike,
    slots: int | None = None,
    merged: bool = True,
) -> list[Held]:
    """Returns the KV caches of all layers, of `slots` frames at most; None: of the window.

    After them come those of each layer with cross-attention, if its gate has `local_frames`.
    """
    c, xa = config.backbone, config.cross_attention
    sizes = [c.window] * c.layers
    if xa.gate is not None and xa.gate.local_frames:
        sizes += [xa.gate.local_frames] * len(config.cross_attention_layers)
    caches = []
    for size in sizes:
        lead = (rows * c.heads,) if merged else (rows, c.heads)
        shape = (*lead, size if slots is None else min(slots, size), c.width // c.heads)
        caches.append(Held(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)))
    return caches


def images(config: schema.ModelConfig, kv: xattn.KeysValues, *, merged: bool = True) -> list[Held]:
    """Returns images as frames attend to them: one that layers share, or one for each layer that sees."""
    layers = config.cross_attention_layers
    pairs = [kv] if kv.k.ndim == 4 else [(kv.k[layer], kv.v[layer]) for layer in layers]

    def heads_first(x: Float[Array, "B S N H"]) -> Float[Array, "*rows S H"]:
        swapped = jnp.swapaxes(x, 1, 2)
        return swapped.reshape(-1, *swapped.shape[2:]) if merged else swapped

    return [Held(heads_first(k), heads_first(v)) for k, v in pairs]


def write(
    cache: Held,
    k: Float[Array, "B N H"],
    v: Float[Array, "B N H"],
    position: Int[Array, "B"] | Int[Array, ""],
) -> Held:
    """Returns the cache with one frame more in each row; where it is donated, this happens in place."""
    slot = position % cache.k.shape[-2]
    if slot.ndim == 0:  # all rows at once, whatever devices they are on
        return Held(_write_column(cache.k, k, slot), _write_column(cache.v, v, slot))
    if len(slot) == 1:
        return Held(_write_rows(cache.k, k, slot), _write_rows(cache.v, v, slot))
    how = {"cpu": _write_rows, "default": _scatter}
    return Held(
        jax.lax.platform_dependent(cache.k, k, slot, **how),
        jax.lax.platform_dependent(cache.v, v, slot, **how),
    )


def _scatter(
    held: Float[Array, "BN S H"], new: Float[Array, "B N H"], slot: Int[Array, "B"]
) -> Float[Array, "BN S H"]:
    """Head by head: of a scatter of [N, H] XLA's TPU compiler makes two copies of the cache."""
    B, N, _ = new.shape
    heads = jnp.arange(B * N, dtype=jnp.int32)
    part = new.reshape(B * N, -1).astype(held.dtype)
    return held.at[heads, jnp.repeat(slot, N)].set(
        part, unique_indices=True, mode="promise_in_bounds"
    )


def _write_rows(
    held: Float[Array, "BN S H"], new: Float[Array, "B N H"], slot: Int[Array, "B"]
) -> Float[Array, "BN S H"]:
    """As `_scatter`, row by row: XLA's CPU backend makes of a scatter a loop that copies."""
    B, N, _ = new.shape
    for row in range(B):
        part = new[row, :, None].astype(held.dtype)
        held = jax.lax.dynamic_update_slice(held, part, (row * N, slot[row], 0))
    return held


def _write_column(
    held: Float[Array, "*rows S H"], new: Float[Array, "B N H"], slot: Int[Array, ""]
) -> Float[Array, "*rows S H"]:
    part = new.reshape(*held.shape[:-2], 1, -1).astype(held.dtype)
    return jax.lax.dynamic_update_slice_in_dim(held, part, slot, axis=held.ndim - 2)


def attend(
    q: Float[Array, "B N H"], held: Held, seen: Bool[Array, "B S"] | None
) -> Float[Array, "B N H"]:
    """Returns softmax(q k / sqrt(H)) v over the keys that each row sees; None: all."""
    logits = _logits(q, held, seen)
    weights = jax.nn.softmax(logits).astype(held.v.dtype).reshape(held.v.shape[:-1])
    return jnp.einsum("...S,...SH->...H", weights, held.v).reshape(q.shape)


def match(q: Float[Array, "B N H"], held: Held) -> Float[Array, "B N"]:
    """As `nn.attention.match`."""
    return jax.nn.logsumexp(_logits(q, held, None), axis=-1) - math.log(held.k.shape[-2])


def attend_locally(
    q: Float[Array, "B N H"], cache: Held, position: Int[Array, "B"]
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """As `nn.attention.attend_locally`, to all that a short ring holds of each row."""
    seen = jnp.arange(cache.k.shape[-2], dtype=jnp.int32)[None] <= position[:, None]
    return attend(q, cache, seen), jax.nn.logsumexp(_logits(q, cache, seen), axis=-1)


def _logits(
    q: Float[Array, "B N H"], held: Held, seen: Bool[Array, "B S"] | None
) -> Float[Array, "B N S"]:
    B, N, H = q.shape
    q = q.reshape(*held.k.shape[:-2], H)
    logits = jnp.einsum("...H,...SH->...S", q, held.k, preferred_element_type=jnp.float32)
    logits = logits.reshape(B, N, -1) * H**-0.5
    return logits if seen is None else jnp.where(seen[:, None], logits, jnp.finfo(jnp.float32).min)


def attend_to_past(
    q: Float[Array, "B N H"], cache: Held, position: Int[Array, "B"]
) -> Float[Array, "B N H"]:
    """As `attend`, to the frames up to each row's position.

    On a CPU the beginning of the ring is read alone while all rows are in it: with several rows, their KV
    caches are as many bytes as the weights. Elsewhere nothing branches.
    """

    def within(size: int) -> Float[Array, "B N H"]:
        seen = jnp.arange(size, dtype=jnp.int32)[None] <= position[:, None]
        return attend(q, Held(cache.k[..., :size, :], cache.v[..., :size, :]), seen)

    S = cache.k.shape[-2]
    # of several rows a beginning is copied first, and so moved three times
    cost = 1 if len(q) == 1 else 3
    sizes = [*(size for size in _BEGINNINGS if cost * size < S), S]

    def filled() -> Float[Array, "B N H"]:
        last = jnp.max(position)
        at = sum((last >= size).astype(jnp.int32) for size in sizes[:-1])
        return jax.lax.switch(at, [functools.partial(within, size) for size in sizes])

    if len(sizes) == 1:
        return within(S)
    return jax.lax.platform_dependent(cpu=filled, default=lambda: within(S))


def attend_to_few(
    q: Float[Array, "B N H"],
    ks: Sequence[Float[Array, "B N H"]],
    vs: Sequence[Float[Array, "B N H"]],
) -> Float[Array, "B N H"]:
    """As `attend`, to a few keys that are arrays of their own."""
    shape = (-1, len(ks), q.shape[2])
    return attend(
        q, Held(jnp.stack(ks, axis=2).reshape(shape), jnp.stack(vs, axis=2).reshape(shape)), None
    )
