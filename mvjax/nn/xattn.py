"""Everything between image features and the residual stream: projection, keys and values, gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mvjax import gates
from mvjax.config import schema
from mvjax.nn import attention, layers, packing, siglip
from mvjax.nn import compute as compute_lib


class KeysValues(NamedTuple):
    """Keys and values of an image, computed once; the layers share them, or each has its own."""

    k: Float[Array, "B S N H"] | Float[Array, "L B S N H"]
    v: Float[Array, "B S N H"] | Float[Array, "L B S N H"]


class Shared(NamedTuple):
    """Adapters that all layers share: {name: kernel} and {path: gate parameter}."""

    kernels: Mapping[str, Array]
    gate: Mapping[str, Array] | None


class ImageTower(nn.Module):
    """Pixels -> SigLIP features -> tokens that keys and values are made of."""

    config: schema.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    def setup(self) -> None:
        """Creates `encoder`, `proj` unless features have the width of tokens, and `norm`."""
        c = self.config
        self.encoder = siglip.Siglip(c.siglip, c.dtype, self.compute)
        if c.projects_image:
            self.proj = nn.Dense(c.image_width, dtype=c.dtype)
        xa = c.cross_attention
        self.norm = layers.RMSNorm(c.image_width, kind=xa.image_norm, eps=xa.image_norm_eps)

    def project(self, features: Float[Array, "B S E"]) -> Float[Array, "B S dim"]:
        """Returns norm(proj(features)), of width `config.image_width`."""
        return self.norm(self.proj(features) if self.config.projects_image else features)


class Projections(nn.Module):
    """Owns some of the kernels q [D, N, H], k and v [width of image tokens, N, H] and out [N, H, D].

    They are returned in float32 and cast where they are used, so that the gradient of a kernel that layers
    share is summed over the layers in float32.
    """

    names: tuple[str, ...]
    config: schema.ModelConfig

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """Returns {name: kernel}."""
        c, width = self.config.backbone, self.config.image_width
        D, N, H = c.width, c.heads, c.width // c.heads
        shapes = {"q": (D, N, H), "k": (width, N, H), "v": (width, N, H), "out": (N, H, D)}
        fan_in = {"q": D, "k": width, "v": width, "out": D}
        owned = {n: layers.Einsum(shapes[n], fan_in[n], name=n) for n in self.names}
        return {name: einsum.weight().kernel for name, einsum in owned.items()}


def shared_names(share: str) -> tuple[str, ...]:
    """The projections that all layers share."""
    return {"qkv": ("q", "k", "v", "out"), "kv": ("k", "v"), "none": ()}[share]


def own_names(share: str) -> tuple[str, ...]:
    """The projections that each layer has for itself."""
    return tuple(n for n in ("q", "k", "v", "out") if n not in shared_names(share))


def keys_values(kernels: Mapping[str, Array], tokens: Float[Array, "B S dim"]) -> KeysValues:
    """Returns the keys and values of image tokens."""
    w_k, w_v = (kernels[name].astype(tokens.dtype) for name in ("k", "v"))
    k, v = (jnp.einsum("BSd,dNH->BSNH", tokens, w) for w in (w_k, w_v))
    return KeysValues(k, v)


def gated_cross_attention(
    config: schema.CrossAttentionConfig,
    y: Float[Array, "B T D"],
    kv: Sequence[KeysValues],
    *,
    kernels: Mapping[str, Array],
    gate: Mapping[str, Array] | None,
    packed: packing.Packing | None = None,
    compute: compute_lib.Compute = compute_lib.PLAIN,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
    """Returns (g * u with u = out(attention(q(y), image)), mean of g), as `apply_gate`.

    `y` is the normed residual stream, `kv` this layer's keys and values for each part of it, `kernels` has
    "q" and "out", `gate` the gate's parameters.
    """
    packed = packed or packing.alone(y)
    w_q, w_out = (layers.Weight(kernels[name]) for name in ("q", "out"))
    how = {"dtype": y.dtype, "flat": compute.flat}
    q = layers.contract("BTD,DNH->BTNH", y, w_q, **how)
    q = compute_lib.remat_saved(compute_lib.ATTENTION, q)
    queries = packed.unpack(q)
    attended = packed.pack(
        [
            attention.attend_by_kernel(part, *one, context=None, compute=compute)
            for part, one in zip(queries, kv, strict=True)
        ]
    )

    def out(heads: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        u = layers.contract("BTNH,NHD->BTD", heads, w_out, **how)
        return compute_lib.remat_saved(compute_lib.ATTENTION, u)

    match, local, design = None, None, config.gate
    if design is not None and design.reads_match:
        match = packed.pack([attention.match(p, one.k) for p, one in zip(queries, kv, strict=True)])
    if design is not None and design.local_frames:
        own = map(packed.unpack, (q, *keys_values(kernels, y)))
        parts = [
            attention.attend_locally(*part, frames=design.local_frames)
            for part in zip(*own, strict=True)
        ]
        local = Local(*map(packed.pack, zip(*parts, strict=True)))
    return apply_gate(
        design, gate, attended, out=out, x=y, q=q, match=match, local=local, tokens=kv[0].k.shape[1]
    )


class Local(NamedTuple):
    """What the last frames give to a frame that attends to them, too: `gates.Design.local_frames`."""

    attended: Float[Array, "*batch N H"]
    log_sum: Float[Array, "*batch N"]  # of exp(logits), float32


def apply_gate(
    gate: gates.Gate | None,
    params: Mapping[str, Array] | None,
    attended: Float[Array, "*batch N H"],
    *,
    out: Callable[[Float[Array, "*batch N H"]], Float[Array, "*batch D"]],
    x: Float[Array, "*batch D"],
    q: Float[Array, "*batch N H"],
    match: Float[Array, "*batch N"] | None,
    local: Local | None,
    tokens: int,
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
    """Returns (g * u, mean of g), float32: where every gate is applied, of sequences and of single frames.

    Without a gate g = 1. `out` is the output projection; a per-head gate comes before it, any other after it.
    For `x`, `q` and `match` see `gates.Seen`; `tokens` is the number of image tokens.
    """
    if gate is None:
        u = out(attended).astype(jnp.float32)
        return u, jnp.ones(u.shape[:-1], jnp.float32)
    assert params is not None
    if gate.output == "head":
        weight = None if local is None else local.log_sum - math.log(tokens)
        g = gate(params, gates.Seen(attended.reshape(x.shape), x, q, match, weight))
        weighed = g[..., None] * attended.astype(jnp.float32)
        if local is not None:
            weighed = weighed + (1 - g[..., None]) * local.attended.astype(jnp.float32)
        return out(weighed.astype(attended.dtype)).astype(jnp.float32), jnp.mean(g, axis=-1)
    u = out(attended)
    g = gate(params, gates.Seen(u, x, q, match))
    return g * u.astype(jnp.float32), jnp.mean(g, axis=-1)
