"""One loss curve on every mesh and for every number of micro-batches."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import toy

from mvjax import tree
from mvjax.config import schema
from mvjax.train import load, sharding, step

STEPS = 3
FAST = {"xla_backend_optimization_level": 0}  # to compile, which is what takes the time here
OPTIM = schema.OptimConfig(learning_rate=1e-2, warmup_steps=2, ema_decay=0.75)


def make_run(mesh: tuple[int, int, int], **train) -> schema.Config:
    train = {"steps": 12, "remat": "none", "loss_chunk": 4, **train}
    run = toy.planned(toy.DIVISIBLE, mesh=mesh, optim=OPTIM, **train)
    return toy.with_data(run, speech_rows=8, speechless_rows=16)


@functools.cache
def weights() -> load.ModelParams:
    """Random parameters in numpy, the same for all meshes."""
    rng = np.random.default_rng(3)
    shapes = load.shapes(make_run((8, 1, 1)))
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32) * 0.2, shapes)


def curve(run: schema.Config, devices: int = 8) -> tuple[list[float], step.TrainState]:
    """Losses of the first steps, and the last state."""
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:devices])
    params = load.ModelParams(*(jax.device_put(t, sharding.shardings(t, mesh)) for t in weights()))
    losses = []
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        made: Any = step.make(run, mesh, adapters=params.adapters, frozen=params.frozen)
        state = step.new_state(run, mesh, params.adapters)
        batch = jax.device_put(toy.Data(run.data)[0], sharding.rows(mesh))
        train_step = made.lower(state, params.frozen, batch).compile(FAST)
        for number in range(STEPS):
            batch = jax.device_put(toy.Data(run.data)[number], sharding.rows(mesh))
            state, metrics = train_step(state, params.frozen, batch)
            losses.append(float(metrics["loss"]))
    return losses, state


@functools.cache
def plain_curve() -> tuple[list[float], step.TrainState]:
    return curve(make_run((1, 1, 1)), devices=1)


@pytest.mark.parametrize(
    ("mesh", "grad_accum_steps", "remat"),
    [
        pytest.param((8, 1, 1), 1, "frozen", marks=pytest.mark.slow),
        pytest.param((1, 8, 1), 1, "full", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 2, "attention", marks=pytest.mark.slow),
        pytest.param((1, 2, 4), 4, "none", marks=pytest.mark.slow),
    ],
)
def test_the_loss_curve_is_that_of_one_device(mesh, grad_accum_steps, remat):
    losses, state = curve(make_run(mesh, grad_accum_steps=grad_accum_steps, remat=remat))
    expected, plain = plain_curve()
    assert max(expected) - min(expected) > 1e-2  # it does learn
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    means = tree.flatten(plain.ema)
    for path, leaf in tree.flatten(state.ema).items():
        np.testing.assert_allclose(leaf, means[path], rtol=1e-3, atol=2e-4, err_msg=path)
