"""One training step: gradients of the adapters, then their update; jitted with shardings.

The frozen parameters are an argument of the step: neither constants of the program nor differentiated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mvjax import tree, types
from mvjax.config import schema
from mvjax.nn import compute as compute_lib
from mvjax.nn import model as model_lib
from mvjax.train import gradients, guard, optim, sharding


class TrainState(NamedTuple):
    """What a step changes and a checkpoint holds."""

    adapters: tree.Tree  # the trained parameters, float32
    optimizer: optax.OptState  # of the adapters only; a dict by the names in `optim.make`
    step: Int[Array, ""]  # global batches seen
    skipped: Int[Array, ""]  # of these without an update: not finite, or a loss spike
    ema: tree.Tree | None = None  # moving average of the adapters (`optim.ema_decay`)


TrainStep = Callable[[TrainState, tree.Tree, types.Batch], tuple[TrainState, gradients.Metrics]]


def init_state(
    adapters: tree.Tree, optimizer: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """Returns the state before the first step."""
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    mean = jax.tree.map(jnp.copy, adapters) if ema else None
    return TrainState(adapters, optimizer.init(adapters), step, skipped, mean)


def new_state(run: schema.Config, mesh: Mesh, adapters: tree.Tree) -> TrainState:
    """Returns the state before the first step, made in its sharding; the adapters are donated."""
    optimizer, ema = optim.make(run.optim, steps=run.train.steps), run.optim.ema_decay is not None
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run, mesh, adapters))
    init = functools.partial(init_state, optimizer=optimizer, ema=ema)
    return jax.jit(init, out_shardings=placed, donate_argnums=0)(adapters)


def abstract_state(run: schema.Config, mesh: Mesh, adapters: tree.Tree) -> TrainState:
    """Returns ShapeDtypeStructs of a state, with shardings, for adapters or their shapes.

    Moments are sharded as their parameters are; counters are replicated.
    """
    optimizer, ema = optim.make(run.optim, steps=run.train.steps), run.optim.ema_decay is not None
    shapes = jax.eval_shape(functools.partial(init_state, optimizer=optimizer, ema=ema), adapters)
    placed: Any = sharding.shardings(shapes.adapters, mesh)
    whole: Any = sharding.replicated(mesh)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, where: where,
        shapes.optimizer,
        placed,
        transform_non_params=lambda _: whole,
    )
    state = TrainState(placed, moments, whole, whole, placed if ema else None)
    return sharding.with_shardings(shapes, state)


def unstacked(run: schema.Config, mesh: Mesh, frozen: tree.Tree) -> tree.Tree:
    """Returns the frozen parameters as a step is fastest with them: on one CPU with an array for each layer.

    Where a few layers are straight code, XLA's CPU backend copies each layer's part out of its stack, forward
    and backward, which takes a tenth of a step. The arrays are copies; the stacks stay as they are.
    """
    compute = compute_lib.on(mesh, run.train, run.model)
    layers = {"backbone": run.model.backbone.layers, "depformer": run.model.depformer.layers}
    flat = tree.flatten(frozen)
    for path, leaf in flat.items():
        part, _, rest = path.partition("/")
        if rest.startswith("blocks/") and compute.unroll(layers[part]) > 1:
            flat[path] = tuple(leaf)
    return tree.unflatten(flat)


def _stacked(frozen: tree.Tree) -> tree.Tree:
    """Inverse of `unstacked`, of which no copy is left in the program."""
    flat = tree.flatten(frozen)
    return tree.unflatten(
        {path: jnp.stack(leaf) if isinstance(leaf, tuple) else leaf for path, leaf in flat.items()}
    )


def _shardings(frozen: tree.Tree, mesh: Mesh) -> tree.Tree:
    whole = {p: leaf for p, leaf in tree.flatten(frozen).items() if not isinstance(leaf, tuple)}
    apart = tree.flatten(frozen).keys() - whole.keys()
    placed = tree.flatten(sharding.shardings(tree.unflatten(whole), mesh))
    return tree.unflatten(placed | dict.fromkeys(apart, sharding.replicated(mesh)))


def make(run: schema.Config, mesh: Mesh, *, adapters: tree.Tree, frozen: tree.Tree) -> TrainStep:
    """Returns the jitted step, which donates its state, for parameters or their shapes.

    It takes the frozen parameters as it is given them here, `unstacked` or not.
    """
    sharding.check_rows(run.data, mesh, grad_accum_steps=run.train.grad_accum_steps)
    model = model_lib.VisionSpeech(run.model, compute_lib.on(mesh, run.train, run.model))
    optimizer = optim.make(run.optim, steps=run.train.steps)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run, mesh, adapters))

    def train_step(
        state: TrainState, frozen: tree.Tree, batch: types.Batch
    ) -> tuple[TrainState, gradients.Metrics]:
        value, sums, grads = gradients.gradients(
            state.adapters, _stacked(frozen), batch, model=model, run=run
        )
        metrics = {"loss": value, **gradients.loss_metrics(sums)}
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = optim.learning_rate(
            state.step, settings=run.optim, steps=run.train.steps
        )
        finite = jnp.isfinite(value) & jnp.isfinite(metrics["grad_norm"])
        good = finite & ~guard.spiked(state.optimizer, value, factor=run.optim.spike_factor)
        state = update(state, grads, optimizer, loss=value, good=good, ema=run.optim.ema_decay)
        return state, {**metrics, "skipped": state.skipped}

    return jax.jit(
        train_step,
        in_shardings=(placed, _shardings(frozen, mesh), sharding.rows(mesh)),
        out_shardings=(placed, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def update(
    state: TrainState,
    grads: tree.Tree,
    optimizer: optax.GradientTransformation,
    *,
    loss: Float[Array, ""],
    good: Bool[Array, ""],
    ema: float | None = None,
) -> TrainState:
    """Applies one update; if the batch is not good, only the counters change.

    The learning rate follows the batches, skipped ones included: the last step of a run has the last rate of
    the schedule, however many were skipped. Adam's bias correction counts updates.
    """
    optimizer_state: Any
    changes, optimizer_state = optax.with_extra_args_support(optimizer).update(
        grads, state.optimizer, state.adapters, value=loss
    )
    adapters = optax.apply_updates(state.adapters, changes)

    mean = None
    if ema is not None:
        share = ema_share(ema, state.step - state.skipped)
        mean = jax.tree.map(lambda old, new: old + share * (new - old), state.ema, adapters)

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(good, new, old)

    kept = jax.tree.map(keep, optimizer_state, state.optimizer)
    if isinstance(optimizer_state, dict) and "schedule" in optimizer_state:
        kept["schedule"] = optimizer_state["schedule"]
    return TrainState(
        adapters=jax.tree.map(keep, adapters, state.adapters),
        optimizer=kept,
        step=state.step + 1,
        skipped=state.skipped + jnp.where(good, 0, 1),
        ema=jax.tree.map(keep, mean, state.ema),
    )


def ema_share(decay: float, updates: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the share of the newest adapters in their average, after `updates` earlier ones.

    That is 1 - min(decay, k / (k + 9)) for k earlier updates. The first average is the adapters, so nothing
    of their initial values stays in it; later it looks back over about a ninth of the updates so far, until
    that is more than 1 / (1 - decay) of them.
    Source: TensorFlow's ExponentialMovingAverage with `num_updates`, counted from one update later.
    """
    return jnp.maximum(1 - decay, 9 / (updates + 9.0)).astype(jnp.float32)
