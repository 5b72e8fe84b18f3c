"""Attention over whole sequences: sliding-window causal, or to an image."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mvjax.config import schema
from mvjax.nn import compute as compute_lib
from mvjax.nn import flash, layers, packing


class SelfAttention(nn.Module):
    """Fused projections, rotary positions, attention, output projection."""

    config: schema.BackboneConfig
    dtype: schema.Dtype = "float32"
    compute: compute_lib.Compute = compute_lib.PLAIN

    def setup(self) -> None:
        """Creates `qkv` and `out`."""
        D, N = self.config.width, self.config.heads
        H = D // N
        flat, heads = self.compute.flat, compute_lib.HEADS

        def place(*axes: str | None) -> Callable[[Array], Array]:
            return lambda kernel: self.compute.whole(kernel, *axes)

        self.qkv = layers.Einsum((D, 3, N, H), D, self.dtype, flat, place(None, None, heads))
        self.out = layers.Einsum((N, H, D), D, self.dtype, flat, place(heads))

    def __call__(
        self, x: Float[Array, "B T D"], packed: packing.Packing | None = None
    ) -> Float[Array, "B T D"]:
        """Attends within each sequence of x, each frame to those before it and itself."""
        packed = packed or packing.alone(x)
        qkv = packed.unpack(self.qkv("BTD,DpNH->BTpNH", x))
        y = self.out("BTNH,NHD->BTD", packed.pack([self._attend(part) for part in qkv]))
        return compute_lib.remat_saved(compute_lib.ATTENTION, y)

    def _attend(self, qkv: Float[Array, "B T 3 N H"]) -> Float[Array, "B T N H"]:
        positions = jnp.arange(qkv.shape[1], dtype=jnp.int32)[None]
        how: dict[str, Any] = {"positions": positions, "base": self.config.rope_base}
        if self.compute.tpu:
            turned = functools.partial(layers.rope_by_matmul, **how)
        else:
            turned = functools.partial(layers.rope, **how, flat=self.compute.flat)
        q, k = turned(qkv[:, :, 0]), turned(qkv[:, :, 1])
        v = qkv[:, :, 2]
        q, k, v = compute_lib.remat_saved(compute_lib.ATTENTION, q, k, v)
        return attend_by_kernel(q, k, v, context=self.config.window, compute=self.compute)


def attend_by_kernel(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    *,
    context: int | None,
    compute: compute_lib.Compute = compute_lib.PLAIN,
) -> Float[Array, "B T N H"]:
    """Attends from frame q to the frames k with k <= q and q - k < context; to all keys if that is None."""
    T, _, H = q.shape[1:]
    causal = context is not None
    if compute.kernel == "splash" and flash.splash_supports(T, k.shape[1], causal=causal):
        return flash.splash(q, k, v, context=context, compute=compute)
    if compute.kernel == "cudnn" and flash.cudnn_supports(H):
        return compute_lib.remat_saved(compute_lib.ATTENTION, flash.cudnn(q, k, v, context=context))
    allowed = None
    if context is not None:
        frames = jnp.arange(T, dtype=jnp.int32)
        distance = frames[:, None] - frames[None, :]
        allowed = (distance >= 0) & (distance < context)
    return compute_lib.remat_saved(compute_lib.ATTENTION, attend(q, k, v, allowed))


def match(q: Float[Array, "B T N H"], k: Float[Array, "B S N H"]) -> Float[Array, "B T N"]:
    """Returns the log of the mean of exp(q k / sqrt(H)) over the keys, in float32: `gates.Seen.match`."""
    logits = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    return jnp.swapaxes(jax.nn.logsumexp(logits, axis=-1) - math.log(k.shape[1]), 1, 2)


def attend_locally(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    frames: int,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Returns (attention over the last `frames` frames, log of the sum of exp of its logits, float32)."""
    index = jnp.arange(q.shape[1], dtype=jnp.int32)
    distance = index[:, None] - index[None, :]
    allowed = (distance >= 0) & (distance < frames)
    logits = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(allowed[None, None], logits * q.shape[-1] ** -0.5, -jnp.inf)
    return attend(q, k, v, allowed), jnp.swapaxes(jax.nn.logsumexp(logits, axis=-1), 1, 2)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    allowed: Bool[Array, "T S"] | None,
) -> Float[Array, "B T N H"]:
    """Returns softmax(q k / sqrt(H)) v over the allowed keys; logits and softmax in float32."""
    logits = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if allowed is not None:
        logits = jnp.where(allowed[None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v)
