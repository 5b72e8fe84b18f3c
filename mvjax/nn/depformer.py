"""The depth transformer: one step per generated codebook of a frame, each with its own weights."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import attention, layers
from mvjax.nn import compute as compute_lib


class Past(NamedTuple):
    """Keys and values of the first steps of a frame; of one layer, or stacked."""

    k: Float[Array, "*L M past n h"]
    v: Float[Array, "*L M past n h"]


class Depformer(nn.Module):
    """Codes of one frame from z, the frame's text and the codes so far; reference section 2.9."""

    config: schema.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    @nn.compact
    def __call__(
        self, z: Float[Array, "M D"], ids: Int[Array, "M steps"], past: Past
    ) -> tuple[Float[Array, "M steps C"], Past]:
        """Returns (float32 logits of the steps after those in `past`, the longer past).

        M is any batch of frames, of which z is the backbone's output. The ids are the input of each step:
        of step 0 the text, of step k the code of level k-1. The past is `empty_past`, or of the call before.
        """
        c, m = self.config.depformer, self.config
        D, Q, C = m.backbone.width, m.codebooks_out, m.audio_vocab
        steps = slice(past.k.shape[-3], past.k.shape[-3] + ids.shape[1])
        text_emb = layers.Embedding((m.text_vocab + 1, c.width), m.dtype, name="text_emb")
        audio_emb = layers.Embedding((Q - 1, C + 1, c.width), m.dtype, name="audio_emb")
        w_in = layers.Einsum((Q, D, c.width), fan_in=D, dtype=m.dtype, name="in")
        heads = layers.Einsum((Q, c.width, C), fan_in=c.width, dtype=m.dtype, name="heads")
        ids = self.compute.shard(ids, compute_lib.ROWS[0])
        embedded = [
            text_emb(ids[:, i]) if level == 0 else audio_emb(ids[:, i], level - 1)
            for i, level in enumerate(range(steps.start, steps.stop))
        ]
        inputs = self.compute.shard_rows(self.compute.shard_lookup(jnp.stack(embedded, axis=1)))
        x = w_in("MD,QDd->MQd", self.compute.shard_rows(z), steps) + inputs
        x, past = _stacked(m, self.compute)(x, past)
        return heads("MQd,QdC->MQC", x, steps).astype(jnp.float32), past

    @nn.nowrap
    def empty_past(self, frames: int) -> Past:
        """Returns the past of step 0 for M = frames."""
        c = self.config.depformer
        shape = (c.layers, frames, 0, c.heads, c.width // c.heads)
        return Past(jnp.zeros(shape, self.config.dtype), jnp.zeros(shape, self.config.dtype))


class DepthBlock(nn.Module):
    """One layer over consecutive steps of a frame; step q uses slice q of the weights."""

    config: schema.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    @nn.compact
    def __call__(
        self, x: Float[Array, "M steps d"], past: Past
    ) -> tuple[Float[Array, "M steps d"], Past]:
        """Returns (residual stream, keys and values of all steps so far)."""
        c, x = self.config.depformer, self.compute.shard_rows(x)
        first = past.k.shape[1]
        norm1 = layers.RMSNorm(c.width, kind=c.norm, eps=c.norm_eps, name="norm1")
        norm2 = layers.RMSNorm(c.width, kind=c.norm, eps=c.norm_eps, name="norm2")
        y, past = StepAttention(self.config, name="attn")(norm1(x), past)
        x = x + y
        return x + StepMlp(self.config, name="mlp")(norm2(x), first=first), past


class StepAttention(nn.Module):
    """Causal attention over the steps of one frame; no positions."""

    config: schema.ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "M steps d"], past: Past
    ) -> tuple[Float[Array, "M steps d"], Past]:
        """Returns (attention output, keys and values of all steps so far)."""
        c, Q, dtype = self.config.depformer, self.config.codebooks_out, self.config.dtype
        d, n = c.width, c.heads
        h = d // n
        first, last = past.k.shape[1], past.k.shape[1] + x.shape[1]
        w_qkv = layers.Einsum((Q, d, 3, n, h), fan_in=d, dtype=dtype, name="qkv")
        w_out = layers.Einsum((Q, n, h, d), fan_in=d, dtype=dtype, name="out")
        qkv = w_qkv("MQd,Qdpnh->MQpnh", x, slice(first, last))
        qkv = compute_lib.remat_saved(compute_lib.ATTENTION, qkv)
        past = Past(
            jnp.concatenate([past.k, qkv[:, :, 1]], axis=1),
            jnp.concatenate([past.v, qkv[:, :, 2]], axis=1),
        )
        steps = jnp.arange(last, dtype=jnp.int32)
        allowed = steps[None, :] <= steps[first:, None]
        u = attention.attend(qkv[:, :, 0], past.k, past.v, allowed)
        y = w_out("MQnh,Qnhd->MQd", u, slice(first, last))
        return compute_lib.remat_saved(compute_lib.ATTENTION, y), past


class StepMlp(nn.Module):
    """Gated SiLU with own weights for each step."""

    config: schema.ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "M steps d"], *, first: int) -> Float[Array, "M steps d"]:
        """Applies the layer to the steps from `first` on."""
        c, Q, dtype = self.config.depformer, self.config.codebooks_out, self.config.dtype
        d, f = c.width, c.hidden
        steps = slice(first, first + x.shape[1])
        w_in = layers.Einsum((Q, d, 2, f), fan_in=d, dtype=dtype, name="in")
        w_out = layers.Einsum((Q, f, d), fan_in=f, dtype=dtype, name="out")
        halves = compute_lib.remat_saved(compute_lib.MLP_HALVES, w_in("MQd,Qdtf->MQtf", x, steps))
        return w_out("MQf,Qfd->MQd", layers.gated_silu(halves), steps)


def first_levels(
    params: tree.Tree, config: schema.ModelConfig, levels: int
) -> tuple[dict[str, Any], schema.ModelConfig]:
    """Returns (parameters, config) of a model that generates only the first `levels` codebooks.

    Takes those of the whole model, and at least one level. The slices are taken before the scan over layers,
    so that the other levels' weights are neither read nor sent between devices.
    """
    flat = tree.flatten(params)
    for path, leaf in flat.items():
        if re.fullmatch(r"depformer/(in|heads)/(kernel|scale)", path):
            flat[path] = leaf[:levels]  # Q ...
        elif re.fullmatch(r"depformer/blocks/(attn|mlp)/.*", path):
            flat[path] = leaf[:, :levels]  # L Q ...
        elif path == "depformer/audio_emb/embedding":
            flat[path] = leaf[: levels - 1]  # Q-1 C+1 d: the input of step 0 is text
    return tree.unflatten(flat), dataclasses.replace(config, codebooks_out=levels)


def _stacked(config: schema.ModelConfig, compute: compute_lib.Compute) -> Any:
    """Returns the blocks as a scan over layers; parameters get a leading L axis."""
    scan = nn.scan(
        compute.block(DepthBlock),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=config.depformer.layers,
    )
    return scan(config, compute, name="blocks")
