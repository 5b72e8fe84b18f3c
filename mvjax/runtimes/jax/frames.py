"""One frame of a batch of conversations in JAX: backbone with KV cache, text, depth transformer.

It computes what the blocks of `mvjax/nn` compute of whole sequences. There a scan over stacked layers keeps
programs small; here each layer, and each step of the depth transformer, has weights and a KV cache of its
own, so that none is copied out of a stack: a frame reads every weight once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mvjax import types
from mvjax.config import schema
from mvjax.nn import layers, xattn
from mvjax.runtimes.jax import kv_cache
from mvjax.runtimes.jax import weights as weights_lib

Choose = Callable[[Float[Array, "B C"], int], Int[Array, "B"]]  # (logits, level) -> codes


class Backbone(NamedTuple):
    """What the backbone computed for one frame; logits float32."""

    z: Float[Array, "B D"]
    text_logits: Float[Array, "B V"]
    gate: Float[Array, "B"]  # gate activation, the mean over channels and the last ten layers
    gates: Float[Array, "B L"]  # of each layer; 0 where no image is seen
    hidden: Float[Array, "B L D"]  # the residual stream after each layer


def backbone(
    config: schema.ModelConfig,
    weights: weights_lib.Weights,
    caches: Sequence[kv_cache.Held],
    column: Int[Array, "B K"],
    position: Int[Array, "B"] | Int[Array, ""],
    *,
    images: Sequence[kv_cache.Held] | None,
    sees: Bool[Array, "B"],
) -> tuple[list[kv_cache.Held], Backbone]:
    """Returns (KV caches, what was computed) of frame `position` of each row, with delayed ids `column`.

    One position for all rows writes the caches of all of them in one step.
    Rows with `sees` see their image, of `kv_cache.images`; without `images` the step is plain Moshi.
    """
    c, dtype = config.backbone, config.dtype
    tables = (weights.text_emb, *weights.audio_emb)
    embedded = [layers.lookup(table, column[:, k], dtype=dtype) for k, table in enumerate(tables)]
    x = sum(embedded[1:], embedded[0])
    adapters = {
        layer: weights.adapter(row) for row, layer in enumerate(config.cross_attention_layers)
    }
    rings = dict(zip(config.cross_attention_layers, caches[c.layers :]))  # of `local_frames`
    seeing = {}
    if images is not None:
        each = images if len(images) > 1 else [images[0]] * len(weights.adapters)
        seeing = dict(zip(config.cross_attention_layers, each, strict=True))
    after, gates, hidden = [], [], []
    for layer, (block, cache) in enumerate(zip(weights.blocks, caches[: c.layers], strict=True)):
        y = layers.rms_norm(x, block.norm1, kind="mean_square", eps=c.norm_eps)
        y, cache = _self_attention(c, block, y, cache, position)
        x, gate = x + y, jnp.zeros(len(x), jnp.float32)
        if layer in rings:
            rings[layer] = _remember(config, adapters[layer], x, rings[layer], position)
        if layer in seeing:
            frame = jnp.broadcast_to(position, len(x))
            local = (rings[layer], frame) if layer in rings else None
            y, gate = _cross_attention(config, adapters[layer], x, seeing[layer], local)
            # not x + 0: a row without an image is untouched, even if its image tokens hold NaN
            x = jnp.where(sees[:, None], x + y.astype(x.dtype), x)
            gate = jnp.where(sees, gate, jnp.zeros_like(gate))
        x = x + _mlp(block, layers.rms_norm(x, block.norm2, kind="mean_square", eps=c.norm_eps))
        after.append(cache)
        gates.append(gate)
        hidden.append(x)
    z = layers.rms_norm(x, weights.out_norm, kind="mean_square", eps=c.norm_eps)
    return [*after, *rings.values()], Backbone(
        z=z,
        text_logits=_matmul(z, weights.text_head).astype(jnp.float32),
        gate=jnp.mean(jnp.stack(gates[-types.REPORTED_LAYERS :]), axis=0),
        gates=jnp.stack(gates, axis=1),
        hidden=jnp.stack(hidden, axis=1),
    )


def depth(
    config: schema.ModelConfig,
    weights: weights_lib.Depth,
    z: Float[Array, "B D"],
    text: Int[Array, "B"],
    choose: Choose,
    *,
    forced: Int[Array, "B Q"],
) -> tuple[Int[Array, "B Q"], Float[Array, "B Q C"]]:
    """Returns (codes, float32 logits) of one frame, level after level, from its z and text.

    Forced codes are taken in place of chosen ones; UNGENERATED leaves the choice.
    """
    c, dtype = config.depformer, config.dtype
    past = [([], []) for _ in range(c.layers)]  # keys and values of the steps so far
    ids, codes, logits = text, [], []
    for level in range(config.codebooks_out):
        table = weights.audio_emb[level - 1] if level else weights.text_emb
        # in turn: for a GPU, XLA would copy these matrices and the text head into one, for one matmul
        z, ids = jax.lax.optimization_barrier((z, ids))
        x = _matmul(z, weights.w_in[level]) + layers.lookup(table, ids, dtype=dtype)
        for block, (ks, vs) in zip(weights.blocks[level], past, strict=True):
            y = layers.rms_norm(x, block.norm1, kind=c.norm, eps=c.norm_eps)
            q, k, v = _qkv(block, y, c.heads)
            ks.append(k)
            vs.append(v)
            u = kv_cache.attend_to_few(q, ks, vs)
            x = x + _matmul(u.reshape(x.shape), block.out)
            x = x + _mlp(block, layers.rms_norm(x, block.norm2, kind=c.norm, eps=c.norm_eps))
        logits.append(_matmul(x, weights.heads[level]).astype(jnp.float32))
        ids = taken(choose(logits[-1], level), forced[:, level])
        codes.append(ids)
    return jnp.stack(codes, axis=1), jnp.stack(logits, axis=1)


def taken(chosen: Int[Array, "*ids"], forced: Int[Array, "*ids"]) -> Int[Array, "*ids"]:
    """Returns forced ids, and chosen ones where those are UNGENERATED."""
    return jnp.where(forced == types.UNGENERATED, chosen, forced)


def _self_attention(
    config: schema.BackboneConfig,
    block: weights_lib.Block,
    y: Float[Array, "B D"],
    cache: kv_cache.Held,
    at: Int[Array, "B"] | Int[Array, ""],
) -> tuple[Float[Array, "B D"], kv_cache.Held]:
    """Attends from each row's frame to those before it and itself, which is written into the cache."""
    q, k, v = _qkv(block, y, config.heads)
    position = jnp.broadcast_to(at, len(y))
    q, k = (layers.rope(x[:, None], position[:, None], base=config.rope_base)[:, 0] for x in (q, k))
    cache = kv_cache.write(cache, k, v, at)
    u = kv_cache.attend_to_past(q, cache, position)
    return _matmul(u.reshape(y.shape), block.out), cache


def _cross_attention(
    config: schema.ModelConfig,
    adapter: weights_lib.Adapter,
    x: Float[Array, "B D"],
    image: kv_cache.Held,
    local: tuple[kv_cache.Held, Int[Array, "B"]] | None,
) -> tuple[Float[Array, "B D"], Float[Array, "B"]]:
    """Returns (g * u, mean of g) as `xattn.apply_gate`, in float32; `local` is of `_remember`."""
    c, xa = config.backbone, config.cross_attention
    y = layers.rms_norm(x, adapter.norm, kind="mean_square", eps=c.norm_eps)
    q = _matmul(y, adapter.q).reshape(len(x), c.heads, -1)
    added, mean = xattn.apply_gate(
        xa.gate,
        adapter.gate,
        kv_cache.attend(q, image, None),
        out=lambda heads: _matmul(heads.reshape(x.shape), adapter.out),
        x=y,
        q=q,
        match=kv_cache.match(q, image) if xa.gate is not None and xa.gate.reads_match else None,
        local=None if local is None else xattn.Local(*kv_cache.attend_locally(q, *local)),
        tokens=image.k.shape[-2],
    )
    if adapter.alpha is not None:
        added = added * adapter.alpha.astype(jnp.float32)
    return added, mean


def _remember(
    config: schema.ModelConfig,
    adapter: weights_lib.Adapter,
    x: Float[Array, "B D"],
    ring: kv_cache.Held,
    position: Int[Array, "B"] | Int[Array, ""],
) -> kv_cache.Held:
    """Returns the ring of a gate's `local_frames` with this frame, too, whether or not it sees an image."""
    c = config.backbone
    assert adapter.k is not None and adapter.v is not None
    y = layers.rms_norm(x, adapter.norm, kind="mean_square", eps=c.norm_eps)
    k, v = (_matmul(y, weight).reshape(len(x), c.heads, -1) for weight in (adapter.k, adapter.v))
    return kv_cache.write(ring, k, v, position)


def _qkv(
    block: weights_lib.Block, y: Float[Array, "B D"], heads: int
) -> tuple[Float[Array, "B N H"], ...]:
    qkv = _matmul(y, block.qkv).reshape(len(y), 3, heads, -1)
    return qkv[:, 0], qkv[:, 1], qkv[:, 2]


def _mlp(block: weights_lib.Block, y: Float[Array, "B D"]) -> Float[Array, "B D"]:
    halves = _matmul(y, block.mlp_in).reshape(len(y), 2, -1)
    return _matmul(layers.gated_silu(halves), block.mlp_out)


def _matmul(
    x: Float[Array, "B in"], weight: weights_lib.Matrix | weights_lib.Columns
) -> Float[Array, "B *out"]:
    if isinstance(weight, weights_lib.Columns):
        y = jnp.einsum("Bi,i...->B...", x, weight.kernel.astype(x.dtype))
        return y if weight.scale is None else (y.astype(jnp.float32) * weight.scale).astype(x.dtype)
    # weight first: XLA's CPU backend reads it once and in order, for one row and for several
    y = jnp.einsum("...oi,Bi->...oB", weight.kernel.astype(x.dtype), x)
    if weight.scale is not None:  # in float32, as in `layers.contract`
        y = (y.astype(jnp.float32) * weight.scale).astype(x.dtype)
    return jnp.moveaxis(y, -1, 0)
