"""Loss and adapter gradients of a batch, with gradient accumulation (`train.grad_accum_steps`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mvjax import tree, types
from mvjax.config import schema
from mvjax.nn import compute as compute_lib
from mvjax.nn import depformer
from mvjax.nn import model as model_lib
from mvjax.train import loss as loss_lib
from mvjax.train import sharding

Metrics = dict[str, Array]
BatchSums = tuple[loss_lib.PartSums, loss_lib.PartSums]  # of the speech and of the speechless part


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
    n, levels = run.train.grad_accum_steps, run.loss.trained_codebooks
    weights = target_weights(batch, run)

    def value(adapters: tree.Tree, rows: types.Batch) -> tuple[Array, BatchSums]:
        whole = tree.merge(adapters, frozen)
        # the depth transformer runs on speech rows and trained codebooks only
        params, kept = depformer.first_levels(whole, run.model, max(levels, 1))
        reduced = model_lib.VisionSpeech(kept, model.compute)
        text_only = rows.speechless._replace(codes=rows.speechless.codes[:, :1])
        parts = (Rows(rows.speech, levels), Rows(text_only, 0))
        speech, speechless = batch_sums(params, parts, model=reduced, run=run)
        return loss_lib.total(speech, speechless, weights, loss=run.loss), (speech, speechless)

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


def loss_metrics(sums: BatchSums) -> Metrics:
    """Returns the mean losses of each part (nats) and the mean gate activations over frames with an image."""
    speech, speechless = sums
    by_layer = {"speech": speech.gates.mean(), "speechless": speechless.gates.mean()}
    return {
        "text_speech": speech.text.mean(),
        "text_speechless": speechless.text.mean(),
        "audio_speech": speech.audio.mean(),
        **{f"gate_{part}": means.mean() for part, means in by_layer.items()},
        **{f"gate_{part}_layers": means for part, means in by_layer.items()},
    }


class Rows(NamedTuple):
    """A part of a batch, and of how many codebooks its audio loss is; 0 leaves the depth transformer out."""

    part: Any  # types.Part of jax arrays
    levels: int


def batch_sums(
    params: tree.Tree,
    parts: Sequence[Rows],
    *,
    model: model_lib.VisionSpeech,
    run: schema.Config,
) -> list[loss_lib.PartSums]:
    """Runs the model on the parts of a batch: packed together for a TPU, else one by one.

    Codes of one row are text alone: no audio is embedded.
    """
    parts = [Rows(jax.tree.map(jnp.asarray, rows.part), rows.levels) for rows in parts]
    inputs = [_inputs(*rows) for rows in parts if rows.part.codes.shape[0]]
    together = [inputs] if model.compute.tpu else [[one] for one in inputs]
    features: list[Any] = []
    for some in together:
        found: Any = model.apply({"params": params}, some, method="features_of")
        features += found
    left = iter(features)
    return [_part_sums(rows, left, model=model, run=run) for rows in parts]


def _inputs(part: Any, levels: int) -> model_lib.Inputs:
    images = part.images
    if images.ndim == 4:  # else the features that `mvjax data features` computed
        images = pixels(images)
    return model_lib.Inputs(part.codes, images, part.has_image, levels)


def _part_sums(
    rows: Rows, features: Iterator[Any], *, model: model_lib.VisionSpeech, run: schema.Config
) -> loss_lib.PartSums:
    """Returns the losses of a part, from the next of the features; zeros of a part without rows."""
    zero, (part, levels) = loss_lib.zero(), rows
    if part.codes.shape[0] == 0:
        layers = len(model.config.cross_attention_layers)
        return loss_lib.PartSums(zero, zero, loss_lib.zero(layers))
    out = next(features)
    text = loss_lib.text_in_chunks(
        out.z,
        out.head,
        part.codes[:, 0],
        part.loss_mask,
        model=model.config,
        loss=run.loss,
        chunk=run.train.loss_chunk,
    )
    audio = zero
    if levels:
        audio = loss_lib.audio(
            out.audio_logits,
            part.codes[:, 1 : 1 + levels],
            delays=model.config.delays[1 : 1 + levels],
            loss=run.loss,
        )
    return loss_lib.PartSums(text, audio, loss_lib.gates(out.gates, part.codes, part.has_image))


def target_weights(batch: types.Batch, run: schema.Config) -> loss_lib.TargetWeights:
    """Returns the sums of the target weights of a batch, which its losses are divided by."""
    arrays: Any = jax.tree.map(jnp.asarray, batch)
    speech, speechless = (
        loss_lib.text_weight(part.codes[:, 0], part.loss_mask, model=run.model, loss=run.loss)
        for part in arrays
    )
    audio, trained = jnp.zeros(()), slice(1, 1 + run.loss.trained_codebooks)
    if run.loss.trained_codebooks:
        codes, delays = arrays.speech.codes[:, trained], run.model.delays[trained]
        audio = loss_lib.audio_weight(codes, delays=delays, loss=run.loss)
    return loss_lib.TargetWeights(jnp.sum(speech) + jnp.sum(speechless), jnp.sum(audio))


def pixels(images: UInt8[Array, "B height width 3"]) -> Float[Array, "B height width 3"]:
    """Returns float32 values in [-1, 1], as `data.images.normalize` does on the host."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5
