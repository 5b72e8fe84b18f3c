"""The temporal transformer: ids -> residual stream -> z; gated cross-attention in the layers that look.

Where not all layers look, the parameters of cross-attention are stacked over those that do, in rising
order. For the scan they are spread over all layers, and a layer that does not look skips what it got.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mvjax.config import schema
from mvjax.nn import attention, layers, xattn
from mvjax.nn import compute as compute_lib

_ADAPTERS = ("norm_xa", "xa", "gate", "gate_alpha")  # of a block: what only a layer that looks has


class Mlp(nn.Module):
    """out(silu(a) * b), with a and b the halves of one projection."""

    config: schema.BackboneConfig
    dtype: schema.Dtype = "float32"
    flat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer."""
        D, F = self.config.width, self.config.hidden
        halves = layers.Einsum((D, 2, F), D, self.dtype, self.flat, name="in")
        out = layers.Einsum((F, D), F, self.dtype, self.flat, name="out")
        h = compute_lib.kept(compute_lib.MLP_HALVES, halves("BTD,DhF->BThF", x))
        return out("BTF,FD->BTD", layers.gated_silu(h))


class Block(nn.Module):
    """One layer: self-attention, gated cross-attention if there is an image, MLP."""

    config: schema.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    def setup(self) -> None:
        """Creates the layer's own parameters."""
        c, xa = self.config.backbone, self.config.cross_attention
        self.norm1 = layers.RMSNorm(c.width, eps=c.norm_eps)
        self.attn = attention.SelfAttention(c, self.config.dtype, self.compute)
        self.norm2 = layers.RMSNorm(c.width, eps=c.norm_eps)
        self.mlp = Mlp(c, self.config.dtype, self.compute.flat)
        self.norm_xa = layers.RMSNorm(c.width, eps=c.norm_eps)
        if xattn.own_names(xa.share):
            self.xa = xattn.Projections(xattn.own_names(xa.share), self.config)
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
        looks = self._looks(layer)
        if has_image is not None and looks is not None:
            has_image = has_image & looks
        if kv is not None:
            assert shared is not None and has_image is not None
            y, opening = self._look_or_skip(looks, x, kv, shared)
            # not x + 0: a row without an image is untouched, whatever its image tokens hold
            x = jnp.where(has_image[:, :, None], x + y.astype(x.dtype), x)
            opening = jnp.where(has_image, opening, jnp.zeros_like(opening))
        # told where it goes, the partitioner gathers the weights of MLP out, not the wider hidden units
        x = x + self.compute.rows(self.mlp(self.norm2(x)))
        self.sow("intermediates", "hidden", x)  # for probes of a runtime; else nothing
        self.sow("intermediates", "gate_activation", opening)
        return (x, cache), opening

    def keys_values(
        self, carry: None, tokens: Float[Array, "B S dim"]
    ) -> tuple[None, xattn.KeysValues]:
        """Returns this layer's own keys and values; shaped as the body of a scan."""
        return carry, xattn.keys_values(self.xa(), tokens)

    def _looks(self, layer: Int[Array, ""]) -> Bool[Array, ""] | None:
        """Returns whether a layer looks at the image; None if all do."""
        if _all_look(self.config):
            return None
        return jnp.any(jnp.array(self.config.looking) == layer)

    def _look_or_skip(
        self,
        looks: Bool[Array, ""] | None,
        x: Float[Array, "B T D"],
        kv: xattn.KeysValues,
        shared: xattn.Shared,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
        """Returns what `_look` does, or zeros."""
        if looks is None:
            return self._look(x, kv, shared)
        nothing = jnp.zeros(x.shape, jnp.float32), jnp.zeros(x.shape[:2], jnp.float32)
        return nn.cond(looks, lambda block: block._look(x, kv, shared), lambda _: nothing, self)

    def _look(
        self,
        x: Float[Array, "B T D"],
        kv: xattn.KeysValues,
        shared: xattn.Shared,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
        xa = self.config.cross_attention
        kernels = dict(shared.kernels)
        if xattn.own_names(xa.share):
            kernels |= self.xa()
        own_gate = xa.gate is not None and not xa.share_gate
        gate = self.gate() if own_gate else shared.gate
        y, opening = xattn.gated_cross_attention(
            xa,
            self.norm_xa(x),
            kv,
            kernels=kernels,
            gate=gate,
            compute=self.compute,
        )
        if xa.share_gate and xa.share == "qkv":
            y = y * self.gate_alpha.astype(jnp.float32)
        return y, opening


class Backbone(nn.Module):
    """Embeddings, the scanned blocks, the final norm and the text head."""

    config: schema.ModelConfig
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
          has_image: frames that see the image; None without `kv`.
          cache: of the frames before, with T = 1; None: the codes are a whole sequence.
        """
        index = jnp.arange(self.config.backbone.layers, dtype=jnp.int32)
        carry = (self.embed(codes), cache)
        (x, cache), openings = self.blocks(carry, index, kv, shared, has_image)
        if cache is not None:
            cache = cache._replace(position=cache.position + 1)
        return self.out_norm(self.compute.rows(x)), openings, cache

    def keys_values(self, tokens: Float[Array, "B S dim"]) -> xattn.KeysValues:
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


def _stacked(config: schema.ModelConfig, compute: compute_lib.Compute) -> Any:
    """Returns the blocks as a scan over layers; parameters get a leading L axis."""
    own_kv = 0 if config.cross_attention.share == "none" else nn.broadcast
    common = {
        "variable_axes": {"params": 0, "intermediates": 0},
        "split_rngs": {"params": True},
        "length": config.backbone.layers,
    }
    methods = {
        "__call__": {**common, "in_axes": (0, own_kv, nn.broadcast, nn.broadcast)},
        "keys_values": {**common, "in_axes": (nn.broadcast,)},
    }
    scanned: Any = nn.scan(compute.block(Block), methods=methods)
    if _all_look(config):
        return scanned(config, compute)
    mapped = nn.map_variables(
        scanned,
        "params",
        trans_in_fn=lambda variables: {"params": spread(variables["params"], config)},
        methods=list(methods),
    )
    return mapped(config, compute)


def spread(blocks: Mapping[str, Any], config: schema.ModelConfig) -> dict[str, Any]:
    """Returns the blocks' parameters with a row for every layer; one that does not look borrows its."""
    if _all_look(config):
        return dict(blocks)
    rows = np.searchsorted(config.looking, np.arange(config.backbone.layers), side="right") - 1
    return _adapter_rows(blocks, np.maximum(rows, 0))


def gathered(blocks: Mapping[str, Any], config: schema.ModelConfig) -> dict[str, Any]:
    """Returns the blocks' parameters as they are kept, of those with a row for every layer."""
    if _all_look(config):
        return dict(blocks)
    return _adapter_rows(blocks, np.array(config.looking))


def _adapter_rows(blocks: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    taken = {
        name: jax.tree.map(lambda leaf: leaf[rows], blocks[name])
        for name in _ADAPTERS
        if name in blocks
    }
    return {**blocks, **taken}


def _all_look(config: schema.ModelConfig) -> bool:
    return len(config.looking) == config.backbone.layers
