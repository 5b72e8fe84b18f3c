"""The training loss: weighted cross-entropy of text and of the trained audio codebooks (reference 7.1).

    loss = text_weight x weighted mean over text targets + audio_weight x weighted mean over audio targets

Every function but `total` returns sums, of weighted losses and of weights: they add up over parts of a batch,
so the loss is one weighted mean over the whole global batch. The mean gate activations are sums, too.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mvjax import types
from mvjax.config import schema
from mvjax.nn import layers


class WeightedSum(NamedTuple):
    """The sums of weight x value and of weights, in float32: what a weighted mean is made of."""

    total: Float[Array, "*values"]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, "*values"]:
        """Returns total / weight; 0 if the weight is 0."""
        return self.total / jnp.where(self.weight > 0, self.weight, 1.0)


class PartSums(NamedTuple):
    """Losses (nats) and gate activations of one part of a batch."""

    text: WeightedSum
    audio: WeightedSum  # over the targets of all trained levels, with one normalizer
    gates: WeightedSum  # [L], over the frames that see an image


class TargetWeights(NamedTuple):
    """The sums of the weights of all text targets and of all audio targets of a batch."""

    text: Float[Array, ""]
    audio: Float[Array, ""]


def zero(*shape: int) -> WeightedSum:
    """Returns the sum over nothing, of values of this shape."""
    return WeightedSum(jnp.zeros(shape), jnp.zeros(()))


def text(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    model: schema.ModelConfig,
    loss: schema.LossConfig,
) -> WeightedSum:
    """Returns the weighted cross-entropy of text targets; their weights are those of `text_weight`."""
    return _weighted(logits, targets, text_weight(targets, mask, model=model, loss=loss))


def text_in_chunks(
    z: Float[Array, "B T D"],
    head: layers.Weight,
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    model: schema.ModelConfig,
    loss: schema.LossConfig,
    chunk: int,
) -> WeightedSum:
    """Returns `text` of the logits z x head in chunks of frames (`train.loss_chunk`), to save memory.

    Projection and cross-entropy are fused: the logits of `chunk` frames per row exist at a time. The forward
    pass also computes the gradient of z, chunk by chunk, so that no logits are computed twice; the gradient
    of the head is computed only if the head is trained.
    """
    weight = text_weight(targets, mask, model=model, loss=loss)
    return WeightedSum(_chunked(z, head, targets, weight, chunk), jnp.sum(weight))


def audio(
    logits: Float[Array, "B T q C"],
    codes: Int[Array, "B q T"],
    *,
    delays: tuple[int, ...],
    loss: schema.LossConfig,
) -> WeightedSum:
    """Returns the weighted cross-entropy of the first q audio codebooks, weighted by `audio_weight`.

    Codes, and the codes that the logits predict, are undelayed; `delays` are frames, one for each level.

    Not chunked: the audio logits of the released recipe (2 levels of 2048 classes, on speech rows only) are
    an eighth of the text logits of the same rows.
    """
    assert len(delays) == logits.shape[2] == codes.shape[1], (delays, logits.shape, codes.shape)
    weight = audio_weight(codes, delays=delays, loss=loss)
    return _weighted(logits, codes.swapaxes(1, 2), weight)


def gates(
    means: Float[Array, "L B T"],
    codes: Int[Array, "B rows T"],
    has_image: Bool[Array, "B"] | Bool[Array, "B T"],
) -> WeightedSum:
    """Returns the sum of each layer's gate activations (means over channels) over frames that see an image.

    A frame whose codes are all -1 is padding and is not counted.
    """
    sees = has_image if has_image.ndim == 2 else has_image[:, None]
    weight = (sees & jnp.any(codes != types.ZERO_TOKEN, axis=1)).astype(jnp.float32)
    return WeightedSum(jnp.einsum("LBT,BT->L", means.astype(jnp.float32), weight), jnp.sum(weight))


def text_weight(
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    model: schema.ModelConfig,
    loss: schema.LossConfig,
) -> Float[Array, "B T"]:
    """Returns the weight of each text target: `text_padding_weight` for PAD and EPAD, 0 if masked or -1.

    With `text_mean_over` = "rows" they are scaled to a sum of 1 in each row that has targets.
    """
    padding = (targets == model.text_pad) | (targets == model.text_epad)
    weight = jnp.where(padding, jnp.float32(loss.text_padding_weight), jnp.float32(1))
    weight = jnp.where(mask & (targets != types.ZERO_TOKEN), weight, 0)
    if loss.text_mean_over == "rows":
        of_row = jnp.sum(weight, axis=1, keepdims=True)
        weight = weight / jnp.where(of_row > 0, of_row, 1)
    return weight


def audio_weight(
    codes: Int[Array, "B q T"], *, delays: tuple[int, ...], loss: schema.LossConfig
) -> Float[Array, "B T q"]:
    """Returns the weight of each audio target: `semantic_weight` in level 0, 1 in the others.

    The last delays[level] frames of a level weigh 0, because the delayed stream ends before their logits;
    so do codes of -1. The levels share one normalizer.
    """
    levels, frames = codes.shape[1:]
    level_weight = jnp.array([loss.semantic_weight, *[1.0] * (levels - 1)], jnp.float32)
    arrived = jnp.arange(frames)[:, None] < frames - jnp.array(delays)[None, :]  # [T q]
    valid = (codes.swapaxes(1, 2) != types.ZERO_TOKEN) & arrived[None]
    return jnp.where(valid, level_weight[None, None], 0)


def total(
    speech: PartSums, speechless: PartSums, weights: TargetWeights, *, loss: schema.LossConfig
) -> Float[Array, ""]:
    """Returns text_weight x mean text loss + audio_weight x mean audio loss, each over both parts.

    The means are over the targets of a whole batch, also where the parts are those of a micro-batch.
    """
    text_sum = WeightedSum(speech.text.total + speechless.text.total, weights.text)
    audio_sum = WeightedSum(speech.audio.total + speechless.audio.total, weights.audio)
    return loss.text_weight * text_sum.mean() + loss.audio_weight * audio_sum.mean()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(
    z: Float[Array, "B T D"],
    head: layers.Weight,
    targets: Int[Array, "B T"],
    weight: Float[Array, "B T"],
    chunk: int,
) -> Float[Array, ""]:
    """Returns the weighted sum of cross-entropies, `chunk` frames at a time."""

    def one(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return total + _of_logits(*part, head), None

    return jax.lax.scan(one, jnp.float32(0), _chunks((z, targets, weight), chunk))[0]


def _chunked_forward(z: Any, head: Any, targets: Any, weight: Any, chunk: int) -> Any:
    """Returns (the sum, its gradients); each argument carries a flag that says if it is differentiated."""
    trained = head.kernel.perturbed
    kernel, scale = head.kernel.value, None if head.scale is None else head.scale.value

    def value(z: Array, kernel: Array, targets: Array, weight: Array) -> Array:
        return _of_logits(z, targets, weight, layers.Weight(kernel, scale))

    def one(carry: Any, part: tuple[Array, Array, Array]) -> tuple[Any, Array]:
        total, dkernel = carry
        argnums = (0, 1) if trained else (0,)
        loss, grads = jax.value_and_grad(value, argnums=argnums)(part[0], kernel, *part[1:])
        return (total + loss, dkernel + grads[1] if trained else None), grads[0]

    start = (jnp.float32(0), jnp.zeros_like(kernel) if trained else None)
    parts = _chunks((z.value, targets.value, weight.value), chunk)
    (total, dkernel), dz = jax.lax.scan(one, start, parts)
    B, T, D = z.value.shape
    return total, (jnp.moveaxis(dz, 0, 1).reshape(B, -1, D)[:, :T], dkernel)


def _chunked_backward(chunk: int, gradients: Any, scale: Any) -> Any:
    dz, dkernel = (None if g is None else g * scale.astype(g.dtype) for g in gradients)
    return dz, None if dkernel is None else layers.Weight(dkernel), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)


def _of_logits(
    z: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weight: Float[Array, "B T"],
    head: layers.Weight,
) -> Float[Array, ""]:
    logits = layers.contract("BTD,DV->BTV", z, head, dtype=z.dtype)
    return _weighted(logits, targets, weight).total


def _chunks(arrays: Any, chunk: int) -> Any:
    """Returns [chunks B chunk ...] of each [B T ...]; the last one is padded with zeros."""

    def split(x: Array) -> Array:
        B, T = x.shape[:2]
        length = min(chunk, T)
        x = jnp.pad(x, ((0, 0), (0, -T % length), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(B, -1, length, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, arrays)


def _weighted(
    logits: Float[Array, "*batch classes"],
    targets: Int[Array, "*batch"],
    weight: Float[Array, "*batch"],
) -> WeightedSum:
    """Returns the sum of weight x (logsumexp(logits) - logits[target]), in float32."""
    logits = logits.astype(jnp.float32)
    index = jnp.maximum(targets, 0)[..., None]  # -1 has no logit; its weight is 0
    chosen = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return WeightedSum(jnp.sum(weight * nats), jnp.sum(weight))
