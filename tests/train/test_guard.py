import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from mvjax.config import schema
from mvjax.train import guard, load, optim, phases, sharding, step

SETTINGS = schema.OptimConfig(learning_rate=0.1, warmup_steps=0, spike_factor=2.0, spike_window=3)


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def start():
    optimizer = optim.make(SETTINGS, steps=50)
    return optimizer, step.init_state({"xa": {"kernel": jnp.ones((2, 3))}}, optimizer)


def advance(optimizer, state, loss):
    grads = jax.tree.map(jnp.ones_like, state.adapters)
    value = jnp.float32(loss)
    good = ~guard.spiked(state.optimizer, value, factor=SETTINGS.spike_factor)
    return step.update(state, grads, optimizer, loss=value, good=good)


def schedule_count(state):
    return optax.tree.get(state.optimizer["schedule"], "count")


def remembered(state):
    return optax.tree.get(state.optimizer, "recent_losses")


def test_a_spike_changes_nothing_but_the_counters():
    optimizer, state = start()
    for loss in (3.0, 90.0, 2.0):  # nothing to compare with yet: 90 passes
        state = advance(optimizer, state, loss)
    np.testing.assert_array_equal(remembered(state), [2, 90, 3])
    before = state
    state = advance(optimizer, state, 6.1)  # median 3, times 2
    assert (int(state.step), int(state.skipped)) == (4, 1)
    jax.tree.map(np.testing.assert_array_equal, state.adapters, before.adapters)
    assert int(schedule_count(state)) == 4  # the learning rate follows the batches
    kept = [dict(s.optimizer, schedule=None) for s in (state, before)]
    jax.tree.map(np.testing.assert_array_equal, *kept)
    state = advance(optimizer, state, 5.9)
    assert (int(state.step), int(state.skipped)) == (5, 1)
    assert not np.array_equal(state.adapters["xa"]["kernel"], before.adapters["xa"]["kernel"])
    np.testing.assert_array_equal(remembered(state), np.float32([5.9, 2, 90]))


def test_skipped_batches_do_not_stretch_the_schedule():
    settings = dataclasses.replace(SETTINGS, final_lr_fraction=0.25)
    optimizer = optim.make(settings, steps=10)
    grads = {"xa": {"kernel": jnp.ones((2, 3))}}
    state = step.init_state(grads, optimizer)
    for n in range(10):
        before, good = state, jnp.bool_(n not in (2, 3, 5))
        state = step.update(state, grads, optimizer, loss=jnp.float32(1), good=good)
    assert (int(state.step), int(state.skipped)) == (10, 3)
    moved = before.adapters["xa"]["kernel"] * (1 - 0.025 * 0.1) - state.adapters["xa"]["kernel"]
    np.testing.assert_allclose(
        moved, 0.1 * 0.25, rtol=1e-4
    )  # Adam's step of a constant gradient is 1


def test_the_average_of_constant_adapters_is_exact_from_the_first_update():
    optimizer = optax.sgd(1.0)
    state = step.init_state({"kernel": jnp.full(3, 5.0)}, optimizer, ema=True)
    for n in range(30):
        grads = {"kernel": jnp.full(3, 4.7 if n == 0 else 0.0)}
        state = step.update(
            state, grads, optimizer, loss=jnp.float32(1), good=jnp.bool_(True), ema=0.999
        )
        np.testing.assert_array_equal(state.ema["kernel"], state.adapters["kernel"])


def test_the_average_forgets_its_beginning():
    shares = jax.vmap(functools.partial(step.ema_share, 0.999))(jnp.arange(20_000))
    assert shares[0] == 1 and shares[-1] == pytest.approx(0.001)
    assert np.prod(1 - np.asarray(shares)[100:400]) < 1e-4  # what is left of update 100 at 400


def test_a_run_that_debugs_nans_is_not_stopped_by_its_own_window():
    optimizer, state = start()
    old = state.optimizer["spikes"]._replace(recent_losses=jnp.float32([2.0, np.nan, np.nan]))
    with jax.debug_nans(True):
        for loss in (3.0, 90.0, 2.0):
            state = jax.jit(functools.partial(advance, optimizer))(state, loss)
    assert int(state.skipped) == 0
    # a checkpoint of a version that filled the window with NaN
    state = start()[1]
    state.optimizer["spikes"] = old
    for loss, skipped in ((3.0, 0), (90.0, 0), (5.9, 0), (15.0, 1)):
        state = advance(optimizer, state, loss)
        assert int(state.skipped) == skipped


def test_an_even_window_has_the_median_of_its_middle_two():
    losses = {"recent_losses": jnp.float32([4.0, 1.0, 3.0, 9.0])}
    state = guard.RecentLosses(**losses)
    assert guard.spiked(state, jnp.float32(7.1), factor=2.0)
    assert not guard.spiked(state, jnp.float32(6.9), factor=2.0)


def test_without_a_factor_there_is_no_memory_and_no_spike():
    optimizer = optim.make(schema.OptimConfig(warmup_steps=0), steps=50)
    state = optimizer.init({"kernel": jnp.ones(2)})
    assert optax.tree.get(state, "recent_losses") is None
    assert not guard.spiked(state, jnp.float32(1e30), factor=None)


def test_the_memory_is_part_of_the_state_and_of_the_step(tmp_path):
    run = toy.make_config(tmp_path)
    run = dataclasses.replace(run, optim=dataclasses.replace(SETTINGS, warmup_steps=2))
    mesh = sharding.make_mesh(schema.MeshConfig(data=2, fsdp=2, tensor=2))
    shapes = load.shapes(run)
    state = step.abstract_state(run, mesh, shapes.adapters)
    assert remembered(state).shape == (3,)
    assert remembered(state).sharding == sharding.replicated(mesh)
    train_step = step.make(run, mesh, adapters=shapes.adapters, frozen=shapes.frozen)
    after, _ = train_step.eval_shape(state, shapes.frozen, toy.Data(run.data)[0])
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert remembered(after).shape == (3,)


def done(step, skipped):
    return phases.DoneStep(step, {"skipped": jnp.int32(skipped)})


def test_only_skips_in_a_row_count():
    skips = guard.Skips(3, total=5)
    for number, total in ((1, 6), (2, 7), (3, 7), (4, 8), (5, 9)):
        skips.add(done(number, total))
    assert skips.steps == [4, 5] and not skips.exceeded
    skips.add(None)
    skips.add(done(6, 10))
    assert skips.exceeded and skips.steps == [4, 5, 6]
    skips.add(done(7, 10))
    assert skips.steps == [4, 5, 6]


def test_the_report_names_the_samples():
    def ids(index):
        return {"speech": [f"a{index}", f"b{index}"], "speechless": []}

    text = guard.report([4, 5], ids, optim=SETTINGS)
    assert text.startswith(
        "steps 4 to 5: expected finite gradients and a loss below 2 x its recent"
    )
    assert "\n  step 4, speech: a3, b3\n  step 5, speech: a4, b4\n" in text
    assert "speechless" not in text and "max_skipped" in text
