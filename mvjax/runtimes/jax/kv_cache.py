"""Keys and values that single frames attend to: KV caches as rings, and images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int8, Num

from mvjax.config import schema
from mvjax.nn import xattn
from mvjax.runtimes import interface

Attend = Callable[..., Float[Array, "B N H"]]
_BEGINNINGS = (128, 512)  # slots
# rows at most that a CPU writes so: each is an instruction for each array of each layer
_ONE_BY_ONE = 256


class Held(NamedTuple):
    """Of one layer; rows and heads are one axis, as batched matmuls take them, or two, for devices to share.

    In a KV cache the frame at position p is in slot p % S; its key is rotated. Keys and values that are int8
    codes have a scale of each, float32.
    """

    k: Float[Array, "BN S H"] | Float[Array, "B N S H"] | Int8[Array, "*rows S H"]
    v: Float[Array, "BN S H"] | Float[Array, "B N S H"] | Int8[Array, "*rows S H"]
    k_scale: Float[Array, "*rows S"] | None = None
    v_scale: Float[Array, "*rows S"] | None = None

    def beginning(self, slots: int) -> Held:
        """Returns the first slots alone."""
        scales = (None if x is None else x[..., :slots] for x in self[2:])
        return Held(self.k[..., :slots, :], self.v[..., :slots, :], *scales)


def empty(
    config: schema.ModelConfig,
    *,
    rows: int,
    dtype: DTypeLike,
    slots: int | None = None,
    merged: bool = True,
    stored: interface.KvCache | None = None,
) -> list[Held]:
    """Returns the KV caches of all layers, of `slots` frames at most; None: of the window.

    After them come those of each layer with cross-attention, if its gate has `local_frames`; what is stored
    otherwise than in `dtype` are the backbone's.
    """
    c, xa = config.backbone, config.cross_attention
    sizes = [c.window] * c.layers
    if xa.gate is not None and xa.gate.local_frames:
        sizes += [xa.gate.local_frames] * len(config.cross_attention_layers)
    caches = []
    for index, size in enumerate(sizes):
        lead = (rows * c.heads,) if merged else (rows, c.heads)
        shape = (*lead, size if slots is None else min(slots, size), c.width // c.heads)
        specs = [(shape, dtype)] * 2
        if stored is not None and index < c.layers:
            specs = [(shape, stored)] * 2 + [(shape[:-1], jnp.float32)] * 2
        caches.append(Held(*(jnp.zeros(*spec) for spec in specs)))
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
    new = [k, v]
    if cache.k_scale is not None:
        (k, k_scale), (v, v_scale) = _quantized(k), _quantized(v)
        new = [k, v, k_scale, v_scale]
    held = jax.tree.leaves(cache)
    return Held(*(_written(old, part, slot) for old, part in zip(held, new, strict=True)))


def _quantized(
    x: Float[Array, "B N H"],
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """Returns (integers from -127 to 127, scale): x is about their product."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.where(scale == 0, 1, scale)[..., None]), scale


def _written(
    held: Array, new: Float[Array, "B N *H"], slot: Int[Array, "B"] | Int[Array, ""]
) -> Array:
    """Of keys, values or scales, whose slots are as many axes from the end as heads are of `new`."""
    axis = held.ndim - new.ndim + 1
    if slot.ndim == 0:  # all rows at once, whatever devices they are on
        part = new.reshape(*held.shape[:axis], 1, *new.shape[2:]).astype(held.dtype)
        return jax.lax.dynamic_update_slice_in_dim(held, part, slot, axis=axis)
    if len(slot) == 1:
        return _write_rows(held, new, slot)
    if len(slot) > _ONE_BY_ONE:
        return _scatter(held, new, slot)
    return jax.lax.platform_dependent(held, new, slot, cpu=_write_rows, default=_scatter)


def _scatter(
    held: Num[Array, "BN S *H"], new: Float[Array, "B N *H"], slot: Int[Array, "B"]
) -> Num[Array, "BN S *H"]:
    """Head by head: of a scatter of [N, H] XLA's TPU compiler makes two copies of the cache."""
    B, N = new.shape[:2]
    heads = jnp.arange(B * N, dtype=jnp.int32)
    part = new.reshape(B * N, *new.shape[2:]).astype(held.dtype)
    return held.at[heads, jnp.repeat(slot, N)].set(
        part, unique_indices=True, mode="promise_in_bounds"
    )


def _write_rows(
    held: Num[Array, "BN S *H"], new: Float[Array, "B N *H"], slot: Int[Array, "B"]
) -> Num[Array, "BN S *H"]:
    """As `_scatter`, row by row: XLA's CPU backend makes of a scatter a loop that copies."""
    B, N = new.shape[:2]
    for row in range(B):
        part = new[row, :, None].astype(held.dtype)
        start = (row * N, slot[row], *[0] * (held.ndim - 2))
        held = jax.lax.dynamic_update_slice(held, part, start)
    return held


def attend(
    q: Float[Array, "B N H"], held: Held, seen: Bool[Array, "B S"] | None
) -> Float[Array, "B N H"]:
    """Returns softmax(q k / sqrt(H)) v over the keys that each row sees; None: all."""
    weights, v = jax.nn.softmax(_logits(q, held, seen)).reshape(held.v.shape[:-1]), held.v
    if held.v_scale is not None:  # the products with codes are exact
        weights, v = weights * held.v_scale, v.astype(q.dtype)
    return jnp.einsum("...S,...SH->...H", weights.astype(v.dtype), v).reshape(q.shape)


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
    k = held.k if held.k_scale is None else held.k.astype(q.dtype)
    logits = jnp.einsum("...H,...SH->...S", q, k, preferred_element_type=jnp.float32)
    if held.k_scale is not None:
        logits = logits * held.k_scale
    logits = logits.reshape(B, N, -1) * H**-0.5
    return logits if seen is None else jnp.where(seen[:, None], logits, jnp.finfo(jnp.float32).min)


def attend_to_past(
    q: Float[Array, "B N H"], cache: Held, position: Int[Array, "B"]
) -> Float[Array, "B N H"]:
    """As `attend`, to the frames up to each row's position.

    On a CPU the beginning of the ring is read alone while all rows are in it: with several rows, their KV
    caches are as many bytes as the weights. Elsewhere nothing branches.
    """
    by_head, S = cache.k_scale is not None, cache.k.shape[-2]

    def within(size: int, *, attend: Attend) -> Float[Array, "B N H"]:
        seen = jnp.arange(size, dtype=jnp.int32)[None] <= position[:, None]
        return attend(q, cache.beginning(size), seen)

    # of several rows a beginning is copied first, and so moved three times; of one head none is
    cost = 1 if len(q) == 1 or by_head else 3
    sizes = [*(size for size in _BEGINNINGS if cost * size < S), S]
    whole = functools.partial(within, attend=attend)
    part = functools.partial(within, attend=_attend_by_head if by_head else attend)

    def filled() -> Float[Array, "B N H"]:
        last = jnp.max(position)
        at = sum((last >= size).astype(jnp.int32) for size in sizes[:-1])
        return jax.lax.switch(at, [functools.partial(part, size) for size in sizes])

    if len(sizes) == 1:
        return whole(S)
    return jax.lax.platform_dependent(cpu=filled, default=lambda: whole(S))


def _attend_by_head(
    q: Float[Array, "B N H"], held: Held, seen: Bool[Array, "B S"]
) -> Float[Array, "B N H"]:
    """As `attend`, to codes: XLA's CPU backend makes floats of them first, here of one head at a time."""
    B, N, H = q.shape

    def head(given: tuple[Array, Held, Array]) -> Array:
        q, one, row = given
        return attend(q, jax.tree.map(lambda x: x[None], one), seen[row, None])

    rows = jnp.repeat(jnp.arange(B, dtype=jnp.int32), N)
    return jax.lax.map(head, (q.reshape(B * N, 1, 1, H), held, rows)).reshape(q.shape)


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
