"""The training loss: weighted cross-entropy of text and of the trained audio codebooks (reference 7.1).

Every function returns sums, not means: a sum of losses and the sum of its weights. They add up over parts
of a batch, so that the loss is one weighted mean over the whole global batch.
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


class Sums(NamedTuple):
    """Numerator and denominator of a weighted mean.

    Attributes:
      loss: float32, sum of weight x cross-entropy (nats).
      weight: float32, sum of weights.
    """

    loss: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """Returns loss / weight, 0 where there was nothing to weigh."""
        return self.loss / jnp.where(self.weight > 0, self.weight, 1.0)


class Parts(NamedTuple):
    """The sums of one part of a batch; `audio` is over all trained levels, with one normalizer."""

    text: Sums
    audio: Sums


class Weights(NamedTuple):
    """The sums of the weights of all targets of a batch."""

    text: Float[Array, ""]
    audio: Float[Array, ""]


def zero() -> Sums:
    """Returns the sums of no target at all."""
    return Sums(jnp.float32(0), jnp.float32(0))


def text(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    model: schema.ModelConfig,
    loss: schema.LossConfig,
) -> Sums:
    """Cross-entropy of text targets; PAD and EPAD weigh `text_padding_weight`, -1 and masked nothing."""
    return _weighted(logits, targets, text_weight(targets, mask, model=model, loss=loss))


def text_in_chunks(
    z: Float[Array, "B T D"],
    head: layers.Weight,
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    model: schema.ModelConfig,
    loss: schema.LossConfig,
    frames: int,
) -> Sums:
    """As `text` of the logits z x head, of which those of `frames` frames exist at a time.

    The forward pass also makes the gradient of z, chunk by chunk, so that no logits are computed twice;
    the gradient of the head exists only if the head is trained.
    """
    weight = text_weight(targets, mask, model=model, loss=loss)
    return Sums(_chunked(z, head, targets, weight, frames), jnp.sum(weight))


def audio(
    logits: Float[Array, "B T q C"],
    codes: Int[Array, "B q T"],
    *,
    delays: tuple[int, ...],
    loss: schema.LossConfig,
) -> Sums:
    """Cross-entropy of the first q audio codebooks; level 0 weighs `semantic_weight`.

    The logits exist whole: those of the released recipe (2 levels of 2048 classes on speech rows only) are
    an eighth of the text logits of the same rows.

    Args:
      logits: of the undelayed codes.
      codes: undelayed.
      delays: frames, one for each of the q levels.
      loss: weights.
    """
    assert len(delays) == logits.shape[2] == codes.shape[1], (delays, logits.shape, codes.shape)
    weight = audio_weight(codes, delays=delays, loss=loss)
    return _weighted(logits, codes.swapaxes(1, 2), weight)


def text_weight(
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    model: schema.ModelConfig,
    loss: schema.LossConfig,
) -> Float[Array, "B T"]:
    """Returns the weight of every text target."""
    padding = (targets == model.text_pad) | (targets == model.text_epad)
    weight = jnp.where(padding, jnp.float32(loss.text_padding_weight), jnp.float32(1))
    valid = mask & (targets != types.ZERO_TOKEN)
    return jnp.where(valid, weight, 0)


def audio_weight(
    codes: Int[Array, "B q T"], *, delays: tuple[int, ...], loss: schema.LossConfig
) -> Float[Array, "B T q"]:
    """Returns the weight of every code.

    The last delays[level] frames of a level have no logits (the shifted stream ended before they
    came) and are not counted, nor is a code of -1. The levels share one normalizer.
    """
    levels, frames = codes.shape[1:]
    level_weight = jnp.array([loss.semantic_weight, *[1.0] * (levels - 1)], jnp.float32)
    arrived = jnp.arange(frames)[:, None] < frames - jnp.array(delays)[None, :]  # [T q]
    valid = (codes.swapaxes(1, 2) != types.ZERO_TOKEN) & arrived[None]
    return jnp.where(valid, level_weight[None, None], 0)


def add(first: Sums, second: Sums) -> Sums:
    """Returns the sums of two disjoint sets of targets."""
    return Sums(first.loss + second.loss, first.weight + second.weight)


def total(
    speech: Parts, speechless: Parts, *, loss: schema.LossConfig, weights: Weights | None = None
) -> Float[Array, ""]:
    """Returns text_weight x mean text loss + audio_weight x mean audio loss, each over both parts.

    Args:
      speech: sums of the speech part.
      speechless: sums of the other.
      loss: weights.
      weights: what to divide by, where the parts are only some rows of the batch.
    """
    text_sums, audio_sums = add(speech.text, speechless.text), add(speech.audio, speechless.audio)
    if weights is not None:
        text_sums = Sums(text_sums.loss, weights.text)
        audio_sums = Sums(audio_sums.loss, weights.audio)
    return loss.text_weight * text_sums.mean() + loss.audio_weight * audio_sums.mean()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(
    z: Float[Array, "B T D"],
    head: layers.Weight,
    targets: Int[Array, "B T"],
    weight: Float[Array, "B T"],
    frames: int,
) -> Float[Array, ""]:
    """Returns the weighted sum of cross-entropies, `frames` frames at a time."""

    def one(total: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return total + _of_logits(*chunk, head), None

    return jax.lax.scan(one, jnp.float32(0), _chunks((z, targets, weight), frames))[0]


def _chunked_forward(z: Any, head: Any, targets: Any, weight: Any, frames: int) -> Any:
    """Returns (the sum, its gradients); arguments come with the mark whether they are differentiated."""
    trained = head.kernel.perturbed
    kernel, scale = jax.tree.map(
        lambda leaf: leaf.value, (head.kernel, head.scale), is_leaf=_marked
    )

    def value(z: Array, kernel: Array, targets: Array, weight: Array) -> Array:
        return _of_logits(z, targets, weight, layers.Weight(kernel, scale))

    def one(carry: Any, chunk: tuple[Array, Array, Array]) -> tuple[Any, Array]:
        total, dkernel = carry
        asked = (0, 1) if trained else (0,)
        loss, grads = jax.value_and_grad(value, argnums=asked)(chunk[0], kernel, *chunk[1:])
        return (total + loss, dkernel + grads[1] if trained else None), grads[0]

    start = (jnp.float32(0), jnp.zeros_like(kernel) if trained else None)
    parts = _chunks((z.value, targets.value, weight.value), frames)
    (total, dkernel), dz = jax.lax.scan(one, start, parts)
    B, T, D = z.value.shape
    dz = jnp.moveaxis(dz, 0, 1).reshape(B, -1, D)[:, :T]
    return total, (dz, dkernel)


def _chunked_backward(frames: int, gradients: Any, scale: Any) -> Any:
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
    return _weighted(logits, targets, weight).loss


def _chunks(arrays: Any, frames: int) -> Any:
    """Returns [chunks B frames ...] of each [B T ...]; the last one is filled up with zeros."""

    def split(x: Array) -> Array:
        B, T = x.shape[:2]
        length = min(frames, T)
        x = jnp.pad(x, ((0, 0), (0, -T % length), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(B, -1, length, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, arrays)


def _marked(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.CustomVJPPrimal)


def _weighted(
    logits: Float[Array, "*batch classes"],
    targets: Int[Array, "*batch"],
    weight: Float[Array, "*batch"],
) -> Sums:
    """Sums weight x (logsumexp(logits) - logits[target]), in float32."""
    logits = logits.astype(jnp.float32)
    index = jnp.maximum(targets, 0)[..., None]  # -1 has no logit; its weight is 0
    chosen = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return Sums(jnp.sum(weight * nats), jnp.sum(weight))
