"""The temporal transformer: ids -> residual stream -> z; gated cross-attention in every layer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mvjax import config as config_lib
from mvjax.nn import attention, layers, xattn
from mvjax.nn import compute as compute_lib


class Mlp(nn.Module):
    """out(silu(a) * b), with a and b the halves of one projection."""

    config: config_lib.BackboneConfig
    dtype: config_lib.Dtype = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer."""
        D, F = self.config.width, self.config.hidden
        halves = layers.Einsum((D, 2, F), fan_in=D, dtype=self.dtype, name="in")
        out = layers.Einsum((F, D), fan_in=F, dtype=self.dtype, name="out")
        h = compute_lib.kept(compute_lib.MLP_HALVES, halves("BTD,DhF->BThF", x))
        return out("BTF,FD->BTD", layers.gated_silu(h))


class Block(nn.Module):
    """One layer: self-attention, gated cross-attention if there is an image, MLP."""

    config: config_lib.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    def setup(self) -> None:
        """Creates the layer's own parameters."""
        c, xa = self.config.backbone, self.config.cross_attention
        self.norm1 = layers.RMSNorm(c.width, eps=c.norm_eps)
        self.attn = attention.SelfAttention(c, self.config.dtype, self.compute)
        self.norm2 = layers.RMSNorm(c.width, eps=c.norm_eps)
        self.mlp = Mlp(c, self.config.dtype)
        self.norm_xa = layers.RMSNorm(c.width, eps=c.norm_eps)
        if xattn.own_names(xa.share):
            self.xa = xattn.Projections(xattn.own_names(xa.share), c, self.config.dtype)
        if xa.gate is not None and not xa.share_gate:
            self.gate = layers.GateWeights(xa.gate, c.width)
        if xa.share_gate and xa.share == "qkv":
            self.gate_alpha = self.param("gate_alpha", nn.initializers.ones, ())

    def __call__(
        self,
        carry: tuple[Float[Array, "B T D"], attention.Cache | None],
        layer: Int[Array, ""],
        kv: xattn.KeysValues | None,
        shared: xattn.Shared | None,
        has_image: Bool[Array, "B T"] | None,
    ) -> tuple[tuple[Float[Array, "B T D"], attention.Cache | None], Float[Array, "B T"]]:
        """Returns ((residual stream, cache), mean of the gate); shaped as the body of a scan."""
        x, cache = carry
        x = self.compute.rows(x)
        y, cache = self.attn(self.norm1(x), cache, layer)
        x = x + y
        opening = jnp.zeros(x.shape[:2], jnp.float32)
        if kv is not None:
            assert shared is not None and has_image is not None
            y, opening = self._look(x, kv, shared)
            # not x + 0: a row without an image is untouched, whatever its image tokens hold
            x = jnp.where(has_image[:, :, None], x + y.astype(x.dtype), x)
            opening = jnp.where(has_image, opening, jnp.zeros_like(opening))
        x = x + self.mlp(self.norm2(x))
        return (x, cache), opening

    def keys_values(
        self, carry: None, tokens: Float[Array, "B S D"]
    ) -> tuple[None, xattn.KeysValues]:
        """Returns this layer's own keys and values; shaped as the body of a scan."""
        return carry, xattn.keys_values(self.xa(), tokens)

    def _look(
        self, x: Float[Array, "B T D"], kv: xattn.KeysValues, shared: xattn.Shared
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
        xa = self.config.cross_attention
        kernels = dict(shared.kernels)
        if xattn.own_names(xa.share):
            kernels |= self.xa()
        own_gate = xa.gate is not None and not xa.share_gate
        gate = self.gate() if own_gate else shared.gate
        y, opening = xattn.gated_cross_attention(
            xa, self.norm_xa(x), kv, kernels=kernels, gate=gate, compute=self.compute
        )
        if xa.share_gate and xa.share == "qkv":
            y = y * self.gate_alpha.astype(jnp.float32)
        return y, opening


class Backbone(nn.Module):
    """Embeddings, the scanned blocks, the final norm and the text head."""

    config: config_lib.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    def setup(self) -> None:
        """Creates the parameters."""
        m, c = self.config, self.config.backbone
        self.text_emb = layers.Embedding((m.text_vocab + 1, c.width), m.dtype)
        self.audio_emb = layers.Embedding((m.codebooks - 1, m.audio_vocab + 1, c.width), m.dtype)
        self.blocks = _stacked(self.config, self.compute)
        self.out_norm = layers.RMSNorm(c.width, eps=c.norm_eps)
        self.text_head = layers.Einsum((c.width, m.text_vocab), fan_in=c.width, dtype=m.dtype)

    def embed(self, codes: Int[Array, "B rows T"]) -> Float[Array, "B T D"]:
        """Returns the sum of the embeddings; with one row the codes are text only."""
        codes = self.compute.spread(codes, compute_lib.ROWS[0])
        x = self.compute.table(self.text_emb(codes[:, 0]))
        for row in range(1, codes.shape[1]):
            x = x + self.compute.table(self.audio_emb(codes[:, row], row - 1))
        return x

    def __call__(
        self,
        codes: Int[Array, "B rows T"],
        kv: xattn.KeysValues | None,
        shared: xattn.Shared | None,
        *,
        has_image: Bool[Array, "B T"] | None,
        cache: attention.Cache | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "L B T"], attention.Cache | None]:
        """Returns (z, gate means, the cache one frame further).

        Args:
          codes: delayed ids, as they enter.
          kv: None leaves cross-attention out entirely.
          shared: adapters that all layers share.
          has_image: frames that may see the image.
          cache: of the frames before, with T = 1; None: the codes are a whole sequence.
        """
        index = jnp.arange(self.config.backbone.layers, dtype=jnp.int32)
        carry = (self.embed(codes), cache)
        (x, cache), openings = self.blocks(carry, index, kv, shared, has_image)
        if cache is not None:
            cache = cache._replace(position=cache.position + 1)
        return self.out_norm(self.compute.rows(x)), openings, cache

    def keys_values(self, tokens: Float[Array, "B S D"]) -> xattn.KeysValues:
        """Returns every layer's own keys and values, for share="none"."""
        _, kv = self.blocks.keys_values(None, tokens)
        return kv

    def head(self) -> layers.Weight:
        """Returns the text head, whole on every device but for its vocabulary axis."""
        kernel, scale = self.text_head.weight()
        return layers.Weight(self.compute.spread(kernel, None, compute_lib.HEADS), scale)

    def text_logits(self, z: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Returns float32 logits over the text vocabulary."""
        return self.text_head("...D,DV->...V", z).astype(jnp.float32)


def _stacked(config: config_lib.ModelConfig, compute: compute_lib.Compute) -> Any:
    """Returns the blocks as a scan over layers; parameters get a leading L axis."""
    own_kv = 0 if config.cross_attention.share == "none" else nn.broadcast
    common = {
        "variable_axes": {"params": 0},
        "split_rngs": {"params": True},
        "length": config.backbone.layers,
    }
    methods = {
        "__call__": {**common, "in_axes": (0, own_kv, nn.broadcast, nn.broadcast)},
        "keys_values": {**common, "in_axes": (nn.broadcast,)},
    }
    return nn.scan(compute.block(Block), methods=methods)(config, compute)
