"""Everything between image features and the residual stream: projection, keys and values, gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mvjax import config as config_lib
from mvjax.nn import attention, layers, siglip
from mvjax.nn import compute as compute_lib


class KeysValues(NamedTuple):
    """Keys and values of an image, computed once; the layers share them, or each has its own."""

    k: Float[Array, "B S N H"] | Float[Array, "L B S N H"]
    v: Float[Array, "B S N H"] | Float[Array, "L B S N H"]


class Shared(NamedTuple):
    """What all layers get of the one set of adapters: {name: kernel}, {path: gate parameter}."""

    kernels: Mapping[str, Array]
    gate: Mapping[str, Array] | None


class ImageTower(nn.Module):
    """Pixels -> SigLIP features -> tokens that keys and values are made of."""

    config: config_lib.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    def setup(self) -> None:
        """Creates `encoder`, `proj` and `norm`."""
        c = self.config
        self.encoder = siglip.Siglip(c.siglip, c.dtype, self.compute)
        self.proj = nn.Dense(c.backbone.width, dtype=c.dtype)
        xa = c.cross_attention
        self.norm = layers.RMSNorm(
            c.backbone.width,
            kind=xa.image_norm,
            eps=xa.image_norm_eps,
            precision=xa.image_norm_dtype,
        )

    def encode(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B S E"]:
        """Returns the features of images with values in [-1, 1]."""
        return self.encoder(pixels)

    def project(self, features: Float[Array, "B S E"]) -> Float[Array, "B S D"]:
        """Returns norm(proj(features))."""
        return self.norm(self.proj(features))


class Projections(nn.Module):
    """Owns some of the kernels q, k, v [D, N, H] and out [N, H, D].

    Attributes:
      names: the kernels that live here.
      config: the backbone's, which gives the sizes.
      dtype: of the kernels as returned.
    """

    names: tuple[str, ...]
    config: config_lib.BackboneConfig
    dtype: config_lib.Dtype = "float32"

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """Returns {name: kernel}."""
        D, N = self.config.width, self.config.heads
        H = D // N
        shapes = {name: (N, H, D) if name == "out" else (D, N, H) for name in self.names}
        return {
            name: layers.Einsum(shape, fan_in=D, dtype=self.dtype, name=name).weights()
            for name, shape in shapes.items()
        }


def shared_names(share: str) -> tuple[str, ...]:
    """The projections that all layers share."""
    return {"qkv": ("q", "k", "v", "out"), "kv": ("k", "v"), "none": ()}[share]


def own_names(share: str) -> tuple[str, ...]:
    """The projections that each layer has for itself."""
    return tuple(n for n in ("q", "k", "v", "out") if n not in shared_names(share))


def keys_values(kernels: Mapping[str, Array], tokens: Float[Array, "B S D"]) -> KeysValues:
    """Returns the keys and values of image tokens."""
    k, v = (jnp.einsum("BSD,DNH->BSNH", tokens, kernels[name]) for name in ("k", "v"))
    return KeysValues(k, v)


def gated_cross_attention(
    config: config_lib.CrossAttentionConfig,
    y: Float[Array, "B T D"],
    kv: KeysValues,
    *,
    kernels: Mapping[str, Array],
    gate: Mapping[str, Array] | None,
    compute: compute_lib.Compute = compute_lib.PLAIN,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
    """Returns (u * g with u = out(attention(q(y), image)), mean of g over channels).

    Args:
      config: which gate, and its precision.
      y: normed residual stream.
      kv: this layer's keys and values.
      kernels: "q" and "out".
      gate: the gate's parameters; None without a gate (g = 1).
      compute: how to compute.
    """
    q = compute_lib.kept(compute_lib.ATTENTION, jnp.einsum("BTD,DNH->BTNH", y, kernels["q"]))
    found = attention.cross_attend(q, kv.k, kv.v, compute)
    u = compute_lib.kept(compute_lib.ATTENTION, jnp.einsum("BTNH,NHD->BTD", found, kernels["out"]))
    if config.gate is None:
        return u.astype(jnp.float32), jnp.ones(u.shape[:2], jnp.float32)
    assert gate is not None
    dtype = u.dtype if config.gate_dtype == "activations" else jnp.float32
    g = config.gate(gate, u, dtype=dtype)
    return u.astype(jnp.float32) * g, jnp.mean(g, axis=-1)
