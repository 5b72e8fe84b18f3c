"""Loss and adapter gradients of a batch, with gradient accumulation (`train.grad_accum_steps`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mvjax import tree, types
from mvjax.config import schema
from mvjax.nn import compute as compute_lib
from mvjax.nn import depformer
from mvjax.nn import model as model_lib
from mvjax.train import gate_stats, sharding
from mvjax.train import loss as loss_lib

Metrics = dict[str, Array]


class PartSums(NamedTuple):
    """Weighted losses and gate statistics of one part of a batch, as sums."""

    losses: loss_lib.PartLosses
    gates: gate_stats.GateSums


class BatchSums(NamedTuple):
    """The sums of both parts of a batch or micro-batch."""

    speech: PartSums
    speechless: PartSums

    def losses(self) -> tuple[loss_lib.PartLosses, loss_lib.PartLosses]:
        """Returns the losses of (the speech part, the speechless part)."""
        return self.speech.losses, self.speechless.losses


def gradients(
    adapters: tree.Tree,
    frozen: tree.Tree,
    batch: types.Batch,
    *,
    model: model_lib.VisionSpeech,
    run: schema.Config,
) -> tuple[Float[Array, ""], BatchSums, tree.Tree]:
    """Returns (loss of a global batch, its sums, gradients of the adapters).

    Gradient accumulation: the rows go through the model in n = `train.grad_accum_steps` micro-batches. The
    loss of each is divided by the target weights of the whole batch, so the gradients add up to those of the
    whole batch.
    """
    n = run.train.grad_accum_steps
    weights = target_weights(batch, run)

    def value(adapters: tree.Tree, rows: types.Batch) -> tuple[Array, BatchSums]:
        sums = batch_sums(adapters, frozen, rows, model=model, run=run)
        return loss_lib.total(*sums.losses(), loss=run.loss, weights=weights), sums

    grad = jax.value_and_grad(value, has_aux=True)
    if n == 1:
        (total, sums), grads = grad(adapters, batch)
        return total, sums, grads

    def split(x: Array) -> Array:
        """[B ...] -> [n B/n ...]; micro-batch i takes rows i, i + n, ..., so no row changes its device."""
        x = jnp.asarray(x)
        x = jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)
        return model.compute.shard(x, None, compute_lib.ROWS)

    def one(carry: Any, rows: types.Batch) -> tuple[Any, None]:
        (total, sums), grads = grad(adapters, rows)
        return jax.tree.map(jnp.add, carry, (total, sums, grads)), None

    micro = jax.tree.map(split, batch)
    (total, sums), grads = jax.eval_shape(grad, adapters, jax.tree.map(lambda x: x[0], micro))
    total, sums, grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (total, sums, grads))
    if model.compute.mesh is not None:  # accumulated gradients are sharded like the adapters
        placed = sharding.shardings(adapters, model.compute.mesh)
        grads = jax.lax.with_sharding_constraint(grads, placed)
    return jax.lax.scan(one, (total, sums, grads), micro)[0]


def loss(
    adapters: tree.Tree,
    frozen: tree.Tree,
    batch: types.Batch,
    *,
    model: model_lib.VisionSpeech,
    run: schema.Config,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns (loss of a global batch, metrics)."""
    sums = batch_sums(adapters, frozen, batch, model=model, run=run)
    value = loss_lib.total(*sums.losses(), loss=run.loss)
    return value, {"loss": value, **loss_metrics(sums)}


def batch_sums(
    adapters: tree.Tree,
    frozen: tree.Tree,
    batch: types.Batch,
    *,
    model: model_lib.VisionSpeech,
    run: schema.Config,
) -> BatchSums:
    """Runs the model on both parts; the depth transformer on speech rows and trained codebooks only."""
    levels = run.loss.trained_codebooks
    params, kept = depformer.first_levels(tree.merge(adapters, frozen), run.model, max(levels, 1))
    model = model_lib.VisionSpeech(kept, model.compute)
    return BatchSums(
        part_sums(params, batch.speech, model=model, run=run, levels=levels),
        part_sums(params, batch.speechless, model=model, run=run, levels=0),
    )


def loss_metrics(sums: BatchSums) -> Metrics:
    """Returns the mean losses of each part (nats) and the mean gate activations over frames with an image."""
    speech, text = sums
    return {
        "text_speech": speech.losses.text.mean(),
        "text_speechless": text.losses.text.mean(),
        "audio_speech": speech.losses.audio.mean(),
        "gate_speech": speech.gates.means().mean(),
        "gate_speechless": text.gates.means().mean(),
        "gate_speech_layers": speech.gates.means(),
        "gate_speechless_layers": text.gates.means(),
    }


def part_sums(
    params: tree.Tree,
    part: types.Part,
    *,
    model: model_lib.VisionSpeech,
    run: schema.Config,
    levels: int,
) -> PartSums:
    """Runs the model on one part, with the audio loss of `levels` codebooks; 0: no audio is embedded."""
    zero = loss_lib.zero()
    if part.codes.shape[0] == 0:
        layers = len(model.config.cross_attention_layers)
        return PartSums(loss_lib.PartLosses(zero, zero), gate_stats.none(layers))
    has_image, mask = jnp.asarray(part.has_image), jnp.asarray(part.loss_mask)
    codes = jnp.asarray(part.codes if levels else part.codes[:, :1])
    images = jnp.asarray(part.images)
    if images.ndim == 4:  # else the features that `mvjax data features` computed
        images = pixels(images)
    out: Any = model.apply(
        {"params": params}, codes, images, has_image, depth_codebooks=levels, method="features"
    )
    text = loss_lib.text_in_chunks(
        out.z,
        out.head,
        codes[:, 0],
        mask,
        model=model.config,
        loss=run.loss,
        chunk=run.train.loss_chunk,
    )
    audio = zero
    if levels:
        audio = loss_lib.audio(
            out.audio_logits,
            codes[:, 1 : 1 + levels],
            delays=model.config.delays[1 : 1 + levels],
            loss=run.loss,
        )
    return PartSums(loss_lib.PartLosses(text, audio), gate_stats.of(out.gates, codes, has_image))


def target_weights(batch: types.Batch, run: schema.Config) -> loss_lib.TargetWeights:
    """Returns the sums of the target weights of a batch, which its losses are divided by."""
    levels = run.loss.trained_codebooks
    text = [
        loss_lib.text_weight(
            jnp.asarray(part.codes)[:, 0],
            jnp.asarray(part.loss_mask),
            model=run.model,
            loss=run.loss,
        )
        for part in batch
    ]
    audio = jnp.zeros(())
    if levels:
        audio = loss_lib.audio_weight(
            jnp.asarray(batch.speech.codes)[:, 1 : 1 + levels],
            delays=run.model.delays[1 : 1 + levels],
            loss=run.loss,
        )
    return loss_lib.TargetWeights(jnp.sum(text[0]) + jnp.sum(text[1]), jnp.sum(audio))


def pixels(
    images: UInt8[Array, "B height width 3"],
) -> Float[Array, "B height width 3"]:
    """Returns float32 values in [-1, 1], as `data.images.normalize` does on the host."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5
