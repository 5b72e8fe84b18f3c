"""The depth transformer: one step per generated codebook of a frame, each with its own weights."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import attention, layers
from mvjax.nn import compute as compute_lib


class Depformer(nn.Module):
    """Codes of one frame from z, the frame's text and the codes so far; reference section 2.9."""

    config: schema.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    @nn.compact
    def __call__(
        self, z: Float[Array, "M D"], ids: Int[Array, "M steps"]
    ) -> Float[Array, "M steps C"]:
        """Returns float32 logits of the first steps, teacher-forced.

        M is any batch of frames, of which z is the backbone's output. The ids are the input of each step:
        of step 0 the text, of step k the code of level k-1.
        """
        c, m = self.config.depformer, self.config
        D, Q, C = m.backbone.width, m.codebooks_out, m.audio_vocab
        steps = slice(0, ids.shape[1])
        text_emb = layers.Embedding((m.text_vocab + 1, c.width), m.dtype, name="text_emb")
        audio_emb = layers.Embedding((Q - 1, C + 1, c.width), m.dtype, name="audio_emb")
        w_in = layers.Einsum((Q, D, c.width), fan_in=D, dtype=m.dtype, name="in")
        heads = layers.Einsum((Q, c.width, C), fan_in=c.width, dtype=m.dtype, name="heads")
        ids = self.compute.shard(ids, compute_lib.ROWS[0])
        embedded = [
            audio_emb(ids[:, i], i - 1) if i else text_emb(ids[:, i]) for i in range(ids.shape[1])
        ]
        inputs = self.compute.shard_rows(self.compute.shard_lookup(jnp.stack(embedded, axis=1)))
        x = w_in("MD,QDd->MQd", self.compute.shard_rows(z), steps) + inputs
        x, _ = _stacked(m, self.compute)(x, None)
        return heads("MQd,QdC->MQC", x, steps).astype(jnp.float32)


class DepthBlock(nn.Module):
    """One layer over the first steps of a frame; step q uses slice q of the weights."""

    config: schema.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    @nn.compact
    def __call__(self, x: Float[Array, "M steps d"], _: None) -> tuple[Array, None]:
        """Returns (residual stream [M, steps, d], nothing); shaped as the body of a scan."""
        c, x = self.config.depformer, self.compute.shard_rows(x)
        norm1 = layers.RMSNorm(c.width, kind=c.norm, eps=c.norm_eps, name="norm1")
        norm2 = layers.RMSNorm(c.width, kind=c.norm, eps=c.norm_eps, name="norm2")
        x = x + StepAttention(self.config, name="attn")(norm1(x))
        return x + StepMlp(self.config, name="mlp")(norm2(x)), None


class StepAttention(nn.Module):
    """Causal attention over the steps of one frame; no positions."""

    config: schema.ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "M steps d"]) -> Float[Array, "M steps d"]:
        """Returns the attention output."""
        c, Q, dtype = self.config.depformer, self.config.codebooks_out, self.config.dtype
        d, n = c.width, c.heads
        h = d // n
        steps = slice(0, x.shape[1])
        w_qkv = layers.Einsum((Q, d, 3, n, h), fan_in=d, dtype=dtype, name="qkv")
        w_out = layers.Einsum((Q, n, h, d), fan_in=d, dtype=dtype, name="out")
        qkv = w_qkv("MQd,Qdpnh->MQpnh", x, steps)
        qkv = compute_lib.remat_saved(compute_lib.ATTENTION, qkv)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        order = jnp.arange(x.shape[1], dtype=jnp.int32)
        u = attention.attend(q, k, v, order[None, :] <= order[:, None])
        y = w_out("MQnh,Qnhd->MQd", u, steps)
        return compute_lib.remat_saved(compute_lib.ATTENTION, y)


class StepMlp(nn.Module):
    """Gated SiLU with own weights for each step."""

    config: schema.ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "M steps d"]) -> Float[Array, "M steps d"]:
        """Applies the layer."""
        c, Q, dtype = self.config.depformer, self.config.codebooks_out, self.config.dtype
        d, f = c.width, c.hidden
        steps = slice(0, x.shape[1])
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
    how: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    length = config.depformer.layers
    how |= {"in_axes": nn.broadcast, "length": length, "unroll": compute.unroll(length)}
    scan = nn.scan(compute.block(DepthBlock), **how)
    return scan(config, compute, name="blocks")
