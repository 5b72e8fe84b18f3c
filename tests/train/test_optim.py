import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from mvjax import tree
from mvjax.config import schema
from mvjax.train import load, optim

SETTINGS = schema.OptimConfig(learning_rate=0.5, warmup_steps=4, final_lr_fraction=0.1)


def rate(step: int, settings=SETTINGS, steps: int = 20) -> float:
    return float(optim.learning_rate(step, settings=settings, steps=steps))


def test_warmup_is_linear_and_learns_from_the_first_step():
    np.testing.assert_allclose([rate(s) for s in range(4)], [0.125, 0.25, 0.375, 0.5], rtol=1e-6)


def test_cosine_ends_at_the_final_fraction():
    assert rate(4) == 0.5
    np.testing.assert_allclose(rate(19), 0.05, rtol=1e-6)
    middle = 4 + 15 / 2
    np.testing.assert_allclose((rate(11) + rate(12)) / 2, 0.275, rtol=1e-2, err_msg=str(middle))
    rates = [rate(s) for s in range(4, 20)]
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_no_warmup():
    assert rate(0, dataclasses.replace(SETTINGS, warmup_steps=0)) == 0.5


@pytest.mark.parametrize("warmup", [20, -1])
def test_warmup_must_end_within_the_run(warmup):
    with pytest.raises(ValueError, match=r"optim\.warmup_steps.*train\.steps = 20"):
        optim.make(dataclasses.replace(SETTINGS, warmup_steps=warmup), steps=20)


def test_decay_is_for_matrices_only(tmp_path):
    adapters = load.shapes(toy.make_config(tmp_path)).adapters
    marked = tree.flatten(optim.decayed(adapters))
    assert {path for path, decays in marked.items() if decays} == {
        *(f"xa/{name}/kernel" for name in ("q", "k", "v", "out")),
        *(f"backbone/blocks/gate/{name}/kernel" for name in ("down", "up")),
        "image/proj/kernel",
    }
    assert {path for path, decays in marked.items() if not decays} == {
        "backbone/blocks/norm_xa/scale",  # [L D], yet no matrix
        "image/norm/scale",
        "image/proj/bias",
    }


def test_first_update_equals_adamw_by_hand():
    settings = dataclasses.replace(SETTINGS, weight_decay=0.2, clip_norm=1.0)
    params = {"x": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}}
    grads = {"x": {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([-4.0])}}  # norm 5
    optimizer = optim.make(settings, steps=20)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        changes, _ = optimizer.update(grads, optimizer.init(params), params)
    # clipped to 0.6 and -0.8; Adam's first step is the sign of the gradient
    kernel, bias = changes["x"]["kernel"], changes["x"]["bias"]
    np.testing.assert_allclose(
        kernel, [[-0.125 * (1 + 0.2 * 1.0), -0.125 * (0 + 0.2 * -2.0)]], rtol=1e-5
    )
    np.testing.assert_allclose(bias, [0.125], rtol=1e-5)
    np.testing.assert_allclose(optax.apply_updates(params, changes)["x"]["bias"], [3.125])
