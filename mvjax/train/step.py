"""One training step: loss of a two-part batch, gradients of the adapters, update; jitted with shardings.

The frozen parameters are an argument of the step, not a constant in it: they are neither copied into the
program nor differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, UInt8

from mvjax import config, tree, types
from mvjax.nn import model as model_lib
from mvjax.train import loss as loss_lib
from mvjax.train import optim, sharding


class State(NamedTuple):
    """What training changes, and all that a resume needs besides the config.

    Attributes:
      adapters: the trained parameters, float32.
      optimizer: optax state.
      step: batches seen.
      skipped: of these, batches whose loss or gradients were not finite, which changed nothing.
    """

    adapters: tree.Tree
    optimizer: optax.OptState
    step: Int[Array, ""]
    skipped: Int[Array, ""]


class PartResult(NamedTuple):
    """Sums of one part; `gates` is of channel means over layers, frames and rows that see an image."""

    losses: loss_lib.Parts
    gates: loss_lib.Sums


Metrics = dict[str, Array]
Step = Callable[[State, tree.Tree, types.Batch], tuple[State, Metrics]]


def init_state(adapters: tree.Tree, optimizer: optax.GradientTransformation) -> State:
    """Returns the state before the first step."""
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return State(adapters, optimizer.init(adapters), step, skipped)


def new_state(run: config.Config, mesh: Mesh, adapters: tree.Tree) -> State:
    """Returns the state before the first step, made in place on the mesh; takes the adapters over."""
    optimizer = optim.make(run.optim, steps=run.train.steps)
    placed = jax.tree.map(lambda leaf: leaf.sharding, like(run, mesh, adapters))
    init = jax.jit(lambda tree: init_state(tree, optimizer), out_shardings=placed, donate_argnums=0)
    return init(adapters)


def like(run: config.Config, mesh: Mesh, adapters: tree.Tree) -> State:
    """Returns the shape structs of a state, with shardings, for adapters or their shapes."""
    optimizer = optim.make(run.optim, steps=run.train.steps)
    shapes = jax.eval_shape(lambda tree: init_state(tree, optimizer), adapters)

    def place(leaf: jax.ShapeDtypeStruct, placed: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    return jax.tree.map(place, shapes, _shardings(shapes, optimizer, mesh))


def make(run: config.Config, mesh: Mesh, *, adapters: tree.Tree, frozen: tree.Tree) -> Step:
    """Returns the jitted step; it donates its state.

    Args:
      run: the config.
      mesh: where it runs.
      adapters: the trained parameters or their shapes.
      frozen: the other parameters or their shapes.
    """
    sharding.check_rows(run.data, mesh)
    model = model_lib.VisionSpeech(run.model, remat=run.train.remat)
    optimizer = optim.make(run.optim, steps=run.train.steps)
    placed = jax.tree.map(lambda leaf: leaf.sharding, like(run, mesh, adapters))

    def train_step(state: State, frozen: tree.Tree, batch: types.Batch) -> tuple[State, Metrics]:
        grad = jax.value_and_grad(loss, has_aux=True)
        (value, metrics), grads = grad(state.adapters, frozen, batch, model=model, run=run)
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = optim.learning_rate(
            state.step - state.skipped, settings=run.optim, steps=run.train.steps
        )
        finite = jnp.isfinite(value) & jnp.isfinite(metrics["grad_norm"])
        state = update(state, grads, optimizer, finite=finite)
        return state, {**metrics, "skipped": state.skipped}

    whole = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(placed, sharding.shardings(frozen, mesh), sharding.rows(mesh)),
        out_shardings=(placed, whole),
        donate_argnums=0,
    )


def loss(
    adapters: tree.Tree,
    frozen: tree.Tree,
    batch: types.Batch,
    *,
    model: model_lib.VisionSpeech,
    run: config.Config,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss of a global batch and its parts as metrics."""
    params = tree.merge(adapters, frozen)
    levels = run.loss.trained_codebooks
    speech = part_result(params, batch.speech, model=model, settings=run.loss, levels=levels)
    text = part_result(params, batch.speechless, model=model, settings=run.loss, levels=0)
    value = loss_lib.total(speech.losses, text.losses, loss=run.loss)
    return value, {
        "loss": value,
        "text_speech": speech.losses.text.mean(),
        "text_speechless": text.losses.text.mean(),
        "audio_speech": speech.losses.audio.mean(),
        "gate_speech": speech.gates.mean(),
        "gate_speechless": text.gates.mean(),
    }


def part_result(
    params: tree.Tree,
    part: types.Part,
    *,
    model: model_lib.VisionSpeech,
    settings: config.LossConfig,
    levels: int,
) -> PartResult:
    """Runs the model on one part; with levels=0 its audio rows are not even embedded."""
    zero = loss_lib.zero()
    if part.codes.shape[0] == 0:
        return PartResult(loss_lib.Parts(zero, zero), zero)
    has_image, mask = jnp.asarray(part.has_image), jnp.asarray(part.loss_mask)
    codes = jnp.asarray(part.codes if levels else part.codes[:, :1])
    seen = pixels(jnp.asarray(part.images))
    output: Any = model.apply({"params": params}, codes, seen, has_image, depth_codebooks=levels)
    text = loss_lib.text(output.text_logits, codes[:, 0], mask, model=model.config, loss=settings)
    audio = zero
    if levels:
        audio = loss_lib.audio(
            output.audio_logits,
            codes[:, 1 : 1 + levels],
            delays=model.config.delays[1 : 1 + levels],
            loss=settings,
        )
    return PartResult(loss_lib.Parts(text, audio), _gate_sums(output.gates, codes, has_image))


def pixels(
    images: UInt8[Array, "B height width 3"],
) -> Float[Array, "B height width 3"]:
    """Returns float32 values in [-1, 1], as `data.images.normalise` does on the host."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5


def update(
    state: State,
    grads: tree.Tree,
    optimizer: optax.GradientTransformation,
    *,
    finite: Bool[Array, ""],
) -> State:
    """Applies one update; if the loss or gradients are not finite, only the counters move."""
    changes, optimizer_state = optimizer.update(grads, state.optimizer, state.adapters)
    adapters = optax.apply_updates(state.adapters, changes)

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(finite, new, old)

    return State(
        adapters=jax.tree.map(keep, adapters, state.adapters),
        optimizer=jax.tree.map(keep, optimizer_state, state.optimizer),
        step=state.step + 1,
        skipped=state.skipped + jnp.where(finite, 0, 1),
    )


def _shardings(state: State, optimizer: optax.GradientTransformation, mesh: Mesh) -> State:
    """Moments lie where their parameters lie; counters are everywhere."""
    adapters = sharding.shardings(state.adapters, mesh)
    whole = sharding.replicated(mesh)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, placed: placed,
        state.optimizer,
        adapters,
        transform_non_params=lambda _: whole,
    )
    return State(adapters, moments, whole, whole)  # pyright: ignore[reportArgumentType]


def _gate_sums(
    gates: Float[Array, "L B T"], codes: Int[Array, "B rows T"], has_image: Bool[Array, "B"]
) -> loss_lib.Sums:
    counted = has_image[:, None] & jnp.any(codes != types.ZERO_TOKEN, axis=1)
    weight = counted.astype(jnp.float32)
    return loss_lib.Sums(jnp.sum(gates.mean(axis=0) * weight), jnp.sum(weight))
