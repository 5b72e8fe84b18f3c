"""The temporal transformer: ids -> residual stream x -> z, with gated cross-attention to the image.

A layer, as in the paper; the middle line only where the image mask says that the frame sees an image:

    x = x + self_attention(norm1(x))
    x = x + gate(u) * u, with u = cross_attention(norm_xa(x), image)
    x = x + mlp(norm2(x))

If only some layers have cross-attention, the parameters of these adapters are stacked over those layers, in
rising order. The scan needs a row for every layer, so rows are repeated, and the other layers skip the step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mvjax import types
from mvjax.config import schema
from mvjax.nn import attention, layers, packing, xattn
from mvjax.nn import compute as compute_lib

ADAPTERS = ("norm_xa", "xa", "gate", "gate_alpha")  # of a block with cross-attention only


class GatedMlp(nn.Module):
    """out(silu(a) * b), with a and b the halves of one projection."""

    config: schema.BackboneConfig
    dtype: schema.Dtype = "float32"
    compute: compute_lib.Compute = compute_lib.PLAIN

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer."""
        D, F, flat = self.config.width, self.config.hidden, self.compute.flat
        whole, hidden = self.compute.whole, compute_lib.HEADS
        w_in = layers.Einsum((D, 2, F), D, self.dtype, flat, name="in")
        w_out = layers.Einsum(
            (F, D), F, self.dtype, flat, lambda kernel: whole(kernel, hidden), name="out"
        )
        if self.compute.tpu:
            kernel, scale = w_in.weight()
            ab = [
                layers.Weight(
                    whole(kernel[:, half], None, hidden), None if scale is None else scale[:, half]
                )
                for half in (0, 1)
            ]
            a, b = (layers.contract("BTD,DF->BTF", x, half, dtype=self.dtype) for half in ab)
            a, b = compute_lib.remat_saved(compute_lib.MLP_HALVES, a, b)
            return w_out("BTF,FD->BTD", jax.nn.silu(a) * b)
        halves = compute_lib.remat_saved(compute_lib.MLP_HALVES, w_in("BTD,DhF->BThF", x))
        return w_out("BTF,FD->BTD", layers.gated_silu(halves))


class BackboneBlock(nn.Module):
    """One layer: self-attention, gated cross-attention if there is an image, MLP."""

    config: schema.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    def setup(self) -> None:
        """Creates the layer's own parameters."""
        c, xa = self.config.backbone, self.config.cross_attention
        local = xa.gate is not None and xa.gate.local_frames
        if local and self.config.image_width != c.width:
            raise ValueError(
                f"cross_attention.dim: expected image tokens as wide as the backbone, {c.width}, for"
                f" {xa.gate!r}, which attends to both, got {self.config.image_width}; set dim=None"
            )
        self.norm1 = layers.RMSNorm(c.width, eps=c.norm_eps)
        self.attn = attention.SelfAttention(c, self.config.dtype, self.compute)
        self.norm2 = layers.RMSNorm(c.width, eps=c.norm_eps)
        self.mlp = GatedMlp(c, self.config.dtype, self.compute)
        self.norm_xa = layers.RMSNorm(c.width, eps=c.norm_eps)
        if xattn.own_names(xa.share):
            self.xa = xattn.Projections(xattn.own_names(xa.share), self.config)
        if xa.gate is not None and not xa.share_gate:
            self.gate = layers.GateWeights(xa.gate, c.width, c.heads)
        if xa.share_gate and xa.share == "qkv":
            self.gate_alpha = self.param("gate_alpha", nn.initializers.ones, ())

    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer: Int[Array, ""],
        kv: Sequence[xattn.KeysValues] | None,
        shared: xattn.Shared | None,
        image_mask: Bool[Array, "B T"],
        packed: packing.Packing,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
        """Returns (residual stream, gate mean) of whole sequences; shaped as the body of a scan."""
        x = self.compute.shard_rows(x)
        x = x + self.attn(self.norm1(x), packed)
        gate_mean = jnp.zeros(x.shape[:2], jnp.float32)
        if kv is not None:
            assert shared is not None
            x, gate_mean = self._see_image(x, layer, kv, shared, image_mask, packed)
        # sharded by rows, or the partitioner would gather the wide hidden units and not the MLP's weights
        x = x + self.compute.shard_rows(self.mlp(self.norm2(x)))
        self.sow("intermediates", "hidden", x)  # for whoever compares layers; else nothing
        self.sow("intermediates", "gate_activation", gate_mean)
        return x, gate_mean

    def keys_values(
        self, carry: None, tokens: Float[Array, "B S dim"]
    ) -> tuple[None, xattn.KeysValues]:
        """Returns this layer's own keys and values; shaped as the body of a scan."""
        return carry, xattn.keys_values(self.xa(), tokens)

    def _see_image(
        self,
        x: Float[Array, "B T D"],
        layer: Int[Array, ""],
        kv: Sequence[xattn.KeysValues],
        shared: xattn.Shared,
        image_mask: Bool[Array, "B T"],
        packed: packing.Packing,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
        """Returns (x + gate(u) * u, mean of the gate) where the mask is True, (x, 0) elsewhere."""
        if _in_every_layer(self.config):
            y, gate_mean = self._cross_attend(x, kv, shared, packed)
        else:
            chosen = jnp.any(jnp.array(self.config.cross_attention_layers) == layer)
            image_mask = image_mask & chosen
            zeros = jnp.zeros(x.shape, jnp.float32), jnp.zeros(x.shape[:2], jnp.float32)
            y, gate_mean = nn.cond(
                chosen,
                lambda block: block._cross_attend(x, kv, shared, packed),
                lambda _: zeros,
                self,
            )
        # not x + 0: a row without an image is untouched, even if its image tokens hold NaN
        x = jnp.where(image_mask[:, :, None], x + y.astype(x.dtype), x)
        return x, jnp.where(image_mask, gate_mean, jnp.zeros_like(gate_mean))

    def _cross_attend(
        self,
        x: Float[Array, "B T D"],
        kv: Sequence[xattn.KeysValues],
        shared: xattn.Shared,
        packed: packing.Packing,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
        """Returns (gate(u) * u, mean of the gate), with this layer's and the shared adapters."""
        xa = self.config.cross_attention
        kernels = dict(shared.kernels)
        if xattn.own_names(xa.share):
            kernels |= self.xa()
        own_gate = xa.gate is not None and not xa.share_gate
        gate = self.gate() if own_gate else shared.gate
        y, gate_mean = xattn.gated_cross_attention(
            xa, self.norm_xa(x), kv, kernels=kernels, gate=gate, packed=packed, compute=self.compute
        )
        if xa.share_gate and xa.share == "qkv":
            y = y * self.gate_alpha.astype(jnp.float32)
        return y, gate_mean


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
        """Returns the sum of each column's embeddings.

        With one row the codes are text only: of audio there is at most its start (`stream.absent_start`).
        """
        codes = self.compute.shard(codes, compute_lib.ROWS[0])
        x = self.compute.shard_lookup(self.text_emb(codes[:, 0]))
        for row in range(1, codes.shape[1]):
            x = x + self.compute.shard_lookup(self.audio_emb(codes[:, row], row - 1))
        if codes.shape[1] == 1 and self.config.stream.absent_start == "initial":
            columns = jnp.arange(codes.shape[2], dtype=jnp.int32)
            x = x + self._absent_audio()[jnp.minimum(columns, max(self.config.delays) + 1)][None]
        return x

    def _absent_audio(self) -> Float[Array, "columns D"]:
        """Returns what audio that is absent throughout adds to each column; nothing from the last one on."""
        m = self.config
        delays = jnp.array(m.delays[1:], jnp.int32)
        columns = jnp.arange(max(m.delays) + 2, dtype=jnp.int32)
        started = columns[:, None] <= delays[None]
        ids = jnp.where(started, m.audio_vocab, types.ZERO_TOKEN)
        looked_up = (self.audio_emb(ids[:, k], k) for k in range(m.codebooks - 1))
        return functools.reduce(jnp.add, looked_up)

    def __call__(
        self,
        codes: Sequence[Array],
        kv: Sequence[xattn.KeysValues] | None,
        shared: xattn.Shared | None,
        *,
        image_mask: Sequence[Array],
    ) -> list[tuple[Array, Array]]:
        """Returns (z [B T D], gate means [L B T]) of each part of a batch for its delayed ids, as they enter.

        Without `kv`, and then without `shared`, cross-attention is left out entirely; the mask says which
        frames see the image.
        """
        index = jnp.arange(self.config.backbone.layers, dtype=jnp.int32)
        shapes = tuple((part.shape[0], part.shape[2]) for part in codes)
        packed = packing.Packing(shapes, self.compute.row_shards)
        x = packed.pack([self.embed(part) for part in codes])
        x, gate_means = self.blocks(x, index, kv, shared, packed.pack(image_mask), packed)
        z = packed.unpack(self.out_norm(self.compute.shard_rows(x)))
        return list(zip(z, jax.vmap(packed.unpack)(gate_means), strict=True))

    def keys_values(self, tokens: Float[Array, "B S dim"]) -> xattn.KeysValues:
        """Returns every layer's own keys and values, for share="none"."""
        return self.blocks.keys_values(None, tokens)[1]

    def head(self) -> layers.Weight:
        """Returns the text head, whole on every device but for its vocabulary axis."""
        kernel, scale = self.text_head.weight()
        return layers.Weight(self.compute.shard(kernel, None, compute_lib.HEADS), scale)

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
        "unroll": compute.unroll(config.backbone.layers),
    }
    methods = {
        "__call__": {**common, "in_axes": (0, own_kv, *[nn.broadcast] * 3)},
        "keys_values": {**common, "in_axes": (nn.broadcast,)},
    }
    scanned: Any = nn.scan(compute.block(BackboneBlock), methods=methods)
    if _in_every_layer(config):
        return scanned(config, compute)
    mapped = nn.map_variables(
        scanned,
        "params",
        trans_in_fn=lambda variables: {"params": expand_adapters(variables["params"], config)},
        methods=list(methods),
    )
    return mapped(config, compute)


def expand_adapters(blocks: Mapping[str, Any], config: schema.ModelConfig) -> dict[str, Any]:
    """Returns the blocks' parameters with adapters for every layer, repeated where a layer has none."""
    if _in_every_layer(config):
        return dict(blocks)
    every = np.arange(config.backbone.layers)
    rows = np.searchsorted(config.cross_attention_layers, every, side="right") - 1
    return _adapter_rows(blocks, np.maximum(rows, 0))


def select_adapters(blocks: Mapping[str, Any], config: schema.ModelConfig) -> dict[str, Any]:
    """Returns the blocks' parameters with the adapters of the layers with cross-attention alone."""
    if _in_every_layer(config):
        return dict(blocks)
    return _adapter_rows(blocks, np.array(config.cross_attention_layers))


def _adapter_rows(blocks: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    adapters = {name: blocks[name] for name in ADAPTERS if name in blocks}
    return {**blocks, **jax.tree.map(lambda leaf: leaf[rows], adapters)}


def _in_every_layer(config: schema.ModelConfig) -> bool:
    return len(config.cross_attention_layers) == config.backbone.layers
