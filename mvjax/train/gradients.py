"""What a batch is worth: the loss of its two parts, and the gradients of the adapters."""

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


class PartResult(NamedTuple):
    """Sums of one part."""

    losses: loss_lib.Parts
    gates: gate_stats.Openings


class Results(NamedTuple):
    """Sums of both parts of a batch, or of some of its rows."""

    speech: PartResult
    speechless: PartResult

    def losses(self) -> tuple[loss_lib.Parts, loss_lib.Parts]:
        """Returns those of both parts."""
        return self.speech.losses, self.speechless.losses


def gradients(
    adapters: tree.Tree,
    frozen: tree.Tree,
    batch: types.Batch,
    *,
    model: model_lib.VisionSpeech,
    run: schema.Config,
) -> tuple[Float[Array, ""], Results, tree.Tree]:
    """Returns (loss of a global batch, its sums, gradients of the adapters).

    Gradient accumulation: the rows go through the model in n = `train.grad_accum_steps` micro-batches. Each
    contributes its sums divided by the weights of the whole batch, so the gradients are the whole batch's.
    """
    n = run.train.grad_accum_steps
    weights = target_weights(batch, run)

    def value(adapters: tree.Tree, rows: types.Batch) -> tuple[Array, Results]:
        found = results(adapters, frozen, rows, model=model, run=run)
        return loss_lib.total(*found.losses(), loss=run.loss, weights=weights), found

    grad = jax.value_and_grad(value, has_aux=True)
    if n == 1:
        (total, found), grads = grad(adapters, batch)
        return total, found, grads

    def split(x: Array) -> Array:
        """[B ...] -> [n B/n ...]; micro-batch i takes every n-th row, so that no row changes its device."""
        x = jnp.asarray(x)
        x = jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)
        return model.compute.spread(x, None, compute_lib.ROWS)

    def one(carry: Any, rows: types.Batch) -> tuple[Any, None]:
        (total, found), grads = grad(adapters, rows)
        return jax.tree.map(jnp.add, carry, (total, found, grads)), None

    micro = jax.tree.map(split, batch)
    (total, found), grads = jax.eval_shape(grad, adapters, jax.tree.map(lambda x: x[0], micro))
    total, found, grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (total, found, grads))
    if model.compute.mesh is not None:  # sums lie where the adapters lie
        placed = sharding.shardings(adapters, model.compute.mesh)
        grads = jax.lax.with_sharding_constraint(grads, placed)
    return jax.lax.scan(one, (total, found, grads), micro)[0]


def loss(
    adapters: tree.Tree,
    frozen: tree.Tree,
    batch: types.Batch,
    *,
    model: model_lib.VisionSpeech,
    run: schema.Config,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss of a global batch and its parts as metrics."""
    found = results(adapters, frozen, batch, model=model, run=run)
    value = loss_lib.total(*found.losses(), loss=run.loss)
    return value, {"loss": value, **part_means(found)}


def results(
    adapters: tree.Tree,
    frozen: tree.Tree,
    batch: types.Batch,
    *,
    model: model_lib.VisionSpeech,
    run: schema.Config,
) -> Results:
    """Runs the model on both parts; the depth transformer on speech rows and trained codebooks only."""
    levels = run.loss.trained_codebooks
    params, kept = depformer.first_levels(tree.merge(adapters, frozen), run.model, max(levels, 1))
    model = model_lib.VisionSpeech(kept, model.compute)
    return Results(
        part_result(params, batch.speech, model=model, run=run, levels=levels),
        part_result(params, batch.speechless, model=model, run=run, levels=0),
    )


def part_means(found: Results) -> Metrics:
    """Returns the parts of the loss, and the gates' means over frames that see an image."""
    speech, text = found
    return {
        "text_speech": speech.losses.text.mean(),
        "text_speechless": text.losses.text.mean(),
        "audio_speech": speech.losses.audio.mean(),
        "gate_speech": speech.gates.means().mean(),
        "gate_speechless": text.gates.means().mean(),
        "gate_speech_layers": speech.gates.means(),
        "gate_speechless_layers": text.gates.means(),
    }


def part_result(
    params: tree.Tree,
    part: types.Part,
    *,
    model: model_lib.VisionSpeech,
    run: schema.Config,
    levels: int,
) -> PartResult:
    """Runs the model on one part; with levels=0 its audio rows are not even embedded."""
    zero = loss_lib.zero()
    if part.codes.shape[0] == 0:
        return PartResult(loss_lib.Parts(zero, zero), gate_stats.none(len(model.config.looking)))
    has_image, mask = jnp.asarray(part.has_image), jnp.asarray(part.loss_mask)
    codes = jnp.asarray(part.codes if levels else part.codes[:, :1])
    seen = jnp.asarray(part.images)
    seen = pixels(seen) if seen.ndim == 4 else seen  # else the features of `mvjax data features`
    found: Any = model.apply(
        {"params": params}, codes, seen, has_image, depth_codebooks=levels, method="features"
    )
    text = loss_lib.text_in_chunks(
        found.z,
        found.head,
        codes[:, 0],
        mask,
        model=model.config,
        loss=run.loss,
        frames=run.train.loss_chunk,
    )
    audio = zero
    if levels:
        audio = loss_lib.audio(
            found.audio_logits,
            codes[:, 1 : 1 + levels],
            delays=model.config.delays[1 : 1 + levels],
            loss=run.loss,
        )
    return PartResult(loss_lib.Parts(text, audio), gate_stats.of(found.gates, codes, has_image))


def target_weights(batch: types.Batch, run: schema.Config) -> loss_lib.Weights:
    """Returns what the losses of a batch are divided by; no model is needed for it."""
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
    return loss_lib.Weights(jnp.sum(text[0]) + jnp.sum(text[1]), jnp.sum(audio))


def pixels(
    images: UInt8[Array, "B height width 3"],
) -> Float[Array, "B height width 3"]:
    """Returns float32 values in [-1, 1], as `data.images.normalize` does on the host."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5
