"""The training loss: weighted cross-entropy of text and of the trained audio codebooks (reference 7.1).

Every function returns sums, not means: a sum of losses and the sum of its weights. They add up over parts
of a batch, so that the loss is one weighted mean over the whole global batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mvjax import config, types


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
    """The sums of one part of a batch; `audio` is over all trained levels, with one normaliser."""

    text: Sums
    audio: Sums


def zero() -> Sums:
    """Returns the sums of no target at all."""
    return Sums(jnp.float32(0), jnp.float32(0))


def text(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    model: config.ModelConfig,
    loss: config.LossConfig,
) -> Sums:
    """Cross-entropy of text targets; PAD and EPAD weigh `text_padding_weight`, -1 and masked nothing."""
    padding = (targets == model.text_pad) | (targets == model.text_epad)
    weight = jnp.where(padding, jnp.float32(loss.text_padding_weight), jnp.float32(1))
    valid = mask & (targets != types.ZERO_TOKEN)
    return _weighted(logits, targets, jnp.where(valid, weight, 0))


def audio(
    logits: Float[Array, "B T q C"],
    codes: Int[Array, "B q T"],
    *,
    delays: tuple[int, ...],
    loss: config.LossConfig,
) -> Sums:
    """Cross-entropy of the first q audio codebooks; level 0 weighs `semantic_weight`.

    The last delays[level] frames of a level have no logits (the shifted stream ended before they
    came) and are not counted, nor is a code of -1. The levels share one normaliser.

    Args:
      logits: of the undelayed codes.
      codes: undelayed.
      delays: frames, one for each of the q levels.
      loss: weights.
    """
    frames, levels = logits.shape[1:3]
    assert len(delays) == levels == codes.shape[1], (delays, logits.shape, codes.shape)
    level_weight = jnp.array([loss.semantic_weight, *[1.0] * (levels - 1)], jnp.float32)
    arrived = jnp.arange(frames)[:, None] < frames - jnp.array(delays)[None, :]  # [T q]
    targets = codes.swapaxes(1, 2)
    valid = (targets != types.ZERO_TOKEN) & arrived[None]
    return _weighted(logits, targets, jnp.where(valid, level_weight[None, None], 0))


def add(first: Sums, second: Sums) -> Sums:
    """Returns the sums of two disjoint sets of targets."""
    return Sums(first.loss + second.loss, first.weight + second.weight)


def total(speech: Parts, speechless: Parts, *, loss: config.LossConfig) -> Float[Array, ""]:
    """Returns text_weight x mean text loss + audio_weight x mean audio loss, each over both parts."""
    text_mean = add(speech.text, speechless.text).mean()
    audio_mean = add(speech.audio, speechless.audio).mean()
    return loss.text_weight * text_mean + loss.audio_weight * audio_mean


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
