import dataclasses
import functools

import closeness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from mvjax import tree, types
from mvjax.config import schema
from mvjax.data import images
from mvjax.nn import compute as compute_lib
from mvjax.nn import model as model_lib
from mvjax.train import gradients, load, sharding, step

MESH = schema.MeshConfig(data=2, fsdp=2, tensor=2)
MODEL = model_lib.VisionSpeech(toy.MODEL)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return toy.make_config(tmp_path_factory.mktemp("frozen"), mesh=MESH)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(MESH)


@pytest.fixture(scope="module")
def params(config, mesh):
    return load.weights(config, mesh)


@pytest.fixture(scope="module")
def train_step(config, mesh, params, compiled):
    with (
        toy.compilation_cache(compiled),
        jax.numpy_dtype_promotion("standard"),  # optax promotes its step count
    ):
        yield step.make(config, mesh, adapters=params.adapters, frozen=params.frozen)


def host(state):
    return jax.tree.map(np.array, state)


@pytest.fixture(scope="module")
def made(config, mesh):
    """The state before the first step in numpy, and its shardings."""
    with jax.numpy_dtype_promotion("standard"):
        state = step.new_state(config, mesh, load.weights(config, mesh).adapters)
    return host(state), jax.tree.map(lambda leaf: leaf.sharding, state)


@pytest.fixture
def state(made):
    """The state before the first step, to be donated."""
    values, shardings = made
    return jax.device_put(jax.tree.map(np.copy, values), shardings)


@pytest.fixture(scope="module")
def alone(config):
    """(config, mesh, parameters) of one device."""
    run = dataclasses.replace(config, mesh=schema.MeshConfig())
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:1])
    return run, mesh, load.weights(run, mesh)


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def jitted_loss(config):
    def loss(adapters, frozen, batch):
        value, sums, _ = gradients.gradients(adapters, frozen, batch, model=MODEL, run=config)
        return value, gradients.loss_metrics(sums)

    return jax.jit(loss)


@pytest.fixture(scope="module")
def params_alone(alone):
    return alone[2]


@pytest.fixture(scope="module")
def outputs(params_alone, config):
    """The model's outputs for the parts of batch 0, in numpy."""
    batch = toy.Data(config.data)[0]
    whole = tree.merge(*params_alone)

    @jax.jit
    def forward(whole, batch, pixels):
        return [
            MODEL.apply({"params": whole}, part.codes, seen, part.has_image, depth_codebooks=2)
            for part, seen in zip(batch, pixels, strict=True)
        ]

    pixels = [images.normalize(part.images) for part in batch]
    return jax.tree.map(np.asarray, forward(whole, batch, pixels))


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    chosen = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - chosen


def test_loss_of_a_batch_by_hand(config, params_alone, jitted_loss, outputs):
    batch = toy.Data(config.data)[0]
    text_sum = text_weight = 0.0
    for part, output in zip(batch, outputs, strict=True):
        targets = part.codes[:, 0]
        weight = np.where(np.isin(targets, (0, 3)), 0.5, 1.0) * part.loss_mask * (targets != -1)
        text_sum += (weight * cross_entropy(output.text_logits, targets)).sum()
        text_weight += weight.sum()
    codes = batch.speech.codes[:, 1:3].swapaxes(1, 2)
    weight = np.where(codes != -1, np.array([100.0, 1.0]), 0.0)
    weight[:, -1:, 1] = 0  # the delay of the second level is one frame
    audio = weight * cross_entropy(outputs[0].audio_logits, codes)
    expected = text_sum / text_weight + audio.sum() / weight.sum()
    value, metrics = jitted_loss(*params_alone, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["audio_speech"], audio.sum() / weight.sum(), rtol=1e-5)


def test_gate_means_count_only_frames_that_see_an_image(config, params_alone, jitted_loss, outputs):
    batch = toy.Data(config.data)[0]
    _, metrics = jitted_loss(*params_alone, batch)
    for name, part, output in zip(("speech", "speechless"), batch, outputs, strict=True):
        counted = part.has_image[:, None] & np.any(part.codes != -1, axis=1)
        assert 0 < counted.sum() < counted.size
        expected = output.gates.mean(axis=0)[counted].mean()
        np.testing.assert_allclose(metrics[f"gate_{name}"], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_part_without_rows_changes_nothing(config, params_alone, jitted_loss):
    batch = toy.Data(config.data)[0]
    empty = [types.Part(*(array[:0] for array in part)) for part in batch]
    _, both = jitted_loss(*params_alone, batch)
    value, speech = jitted_loss(*params_alone, types.Batch(batch.speech, empty[1]))
    expected = both["text_speech"] + both["audio_speech"]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert float(speech["text_speechless"]) == float(speech["gate_speechless"]) == 0
    value, text = jitted_loss(*params_alone, types.Batch(empty[0], batch.speechless))
    np.testing.assert_allclose(value, both["text_speechless"], rtol=1e-6)
    assert float(text["audio_speech"]) == 0


def test_the_arrangement_for_tpus_is_the_same_step(config, mesh, params_alone):
    """Rows of both kinds packed, the halves of the MLP apart, rotary positions by a matmul."""
    batch, rows = toy.Data(config.data)[0], sharding.rows(mesh)

    def gradients_of(compute):
        def loss(adapters, frozen, batch):
            if compute.mesh is not None:
                batch = jax.lax.with_sharding_constraint(batch, rows)
            model = model_lib.VisionSpeech(toy.MODEL, compute)
            return gradients.gradients(adapters, frozen, batch, model=model, run=config)

        return jax.tree.map(np.asarray, jax.jit(loss)(*host(params_alone), batch))

    plain = gradients_of(compute_lib.Compute())
    arranged = gradients_of(compute_lib.Compute("frozen", mesh=mesh, tpu=True))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, arranged, plain)


def test_speech_rows_hear_without_trained_codebooks(config, params_alone):
    run = dataclasses.replace(config, loss=schema.LossConfig(trained_codebooks=0))
    batch = toy.Data(config.data)[0]
    deaf = batch._replace(speech=batch.speech._replace(codes=batch.speech.codes.copy()))
    deaf.speech.codes[:, 1 + toy.MODEL.codebooks_out :] = 3  # the user

    @jax.jit
    def loss_and_sums(adapters, frozen, rows):
        return gradients.gradients(adapters, frozen, rows, model=MODEL, run=run)[:2]

    losses, audio = [], []
    for rows in (batch, deaf):
        loss, sums = loss_and_sums(*params_alone, rows)
        losses.append(float(loss))
        audio.append(float(sums[0].audio.weight))
    assert abs(losses[0] - losses[1]) > 1e-4
    assert audio == [0, 0]


@pytest.mark.parametrize("rows", [(0, 8), (4, 0)])
def test_a_part_without_rows_can_be_trained_and_sharded(config, mesh, params, rows):
    run = toy.with_data(config, speech_rows=rows[0], speechless_rows=rows[1])
    with jax.numpy_dtype_promotion("standard"):
        train_step = step.make(run, mesh, adapters=params.adapters, frozen=params.frozen)
        like = step.abstract_state(run, mesh, params.adapters)
        batch = jax.device_put(toy.Data(run.data)[0], sharding.rows(mesh))
        state, metrics = jax.eval_shape(train_step, like, params.frozen, batch)
    assert state.step.shape == metrics["loss"].shape == ()


def test_only_adapters_are_trained(config, params, train_step, state):
    before, frozen = host(state), host(params.frozen)
    state, metrics = train_step(state, params.frozen, toy.Data(config.data)[0])
    assert_equal(host(params.frozen), frozen)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), host(state.adapters), before.adapters)
    assert all(tree.flatten(changed).values())
    assert int(state.step) == 1 and int(metrics["skipped"]) == 0
    assert float(metrics["grad_norm"]) > 0


def test_moments_lie_where_their_parameters_lie(state):
    adapters = tree.flatten(state.adapters)
    assert adapters["xa/q/kernel"].sharding.spec == jax.sharding.PartitionSpec(
        "fsdp", "tensor", None
    )
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert len(moments) == 2 * len(adapters)
    for moment, parameter in zip(moments, 2 * jax.tree.leaves(state.adapters), strict=True):
        assert moment.sharding == parameter.sharding and moment.shape == parameter.shape


@pytest.mark.slow
def test_a_loss_that_is_not_finite_changes_nothing(config, params, train_step, state):
    state, _ = train_step(state, params.frozen, toy.Data(config.data)[0])
    before = host(state)
    bad = toy.Data(config.data)[1]
    bad.speechless.codes[0, 0, 1] = toy.MODEL.text_vocab + 3  # has no logit
    bad.speechless.loss_mask[:] = True
    state, metrics = train_step(state, params.frozen, bad)
    assert np.isnan(metrics["loss"])
    after = host(state)
    assert_equal(after.adapters, before.adapters)
    schedules = [dict(s.optimizer).pop("schedule") for s in (after, before)]
    assert [int(optax.tree.get(s, "count")) for s in schedules] == [2, 1]  # it follows the batches
    assert_equal(*(dict(s.optimizer, schedule=None) for s in (after, before)))
    assert (int(after.step), int(after.skipped)) == (2, 1)
    state, metrics = train_step(state, params.frozen, toy.Data(config.data)[1])
    assert np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == 1
    assert_equal(np.isfinite(metrics["grad_norm"]), np.True_)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), host(state), after)))


@pytest.mark.slow
def test_eight_devices_and_one_agree(config, params, made, alone, train_step, state):
    batch = toy.Data(config.data)[0]
    sharded, metrics = train_step(state, params.frozen, batch)
    run, one, weights = alone
    assert_equal(host(weights.adapters), made[0].adapters)
    with jax.numpy_dtype_promotion("standard"):
        plain_step = step.make(run, one, adapters=weights.adapters, frozen=weights.frozen)
        state, plain = plain_step(
            step.new_state(run, one, jax.tree.map(jnp.copy, weights.adapters)),
            weights.frozen,
            batch,
        )
    np.testing.assert_allclose(metrics["loss"], plain["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], plain["grad_norm"], rtol=1e-4)
    first = tree.flatten(host(sharded.optimizer)["adam"].mu)
    for path, moment in tree.flatten(host(state.optimizer)["adam"].mu).items():
        np.testing.assert_allclose(first[path], moment, rtol=1e-3, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_a_layers_array_of_its_own_changes_nothing(config, mesh, params, alone):
    run, one, weights = alone
    apart = step.unstacked(run, one, weights.frozen)
    flat, stacks = tree.flatten(apart), tree.flatten(weights.frozen)
    kernels = [path for path, leaf in flat.items() if isinstance(leaf, tuple)]
    assert (
        "backbone/blocks/mlp/in/kernel" in kernels and "depformer/blocks/attn/qkv/kernel" in kernels
    )
    assert all(path.split("/")[1] == "blocks" for path in kernels)
    for path in kernels:
        np.testing.assert_array_equal(np.stack(flat[path]), stacks[path])
    assert jax.tree.leaves(step.unstacked(config, mesh, params.frozen)) == jax.tree.leaves(
        params.frozen
    )
    batch, after = toy.Data(config.data)[0], []
    with jax.numpy_dtype_promotion("standard"):
        for frozen in (weights.frozen, apart):
            train_step = step.make(run, one, adapters=weights.adapters, frozen=frozen)
            state = step.new_state(run, one, jax.tree.map(jnp.copy, weights.adapters))
            state, metrics = train_step(state, frozen, batch)
            after.append((host(state.adapters), host(metrics)))
    for one_leaf, other in zip(*map(jax.tree.leaves, after), strict=True):
        closeness.assert_close(one_leaf, other, 1e-6)


def test_pixels_equal_the_hosts():
    picture = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    closeness.assert_close(gradients.pixels(jnp.asarray(picture)), images.normalize(picture), 1e-6)


@pytest.mark.slow
def test_features_stand_for_pixels_and_frames_may_be_blind(config, params_alone, jitted_loss):
    batch = toy.Data(config.data)[0]
    whole = tree.merge(*params_alone)

    @jax.jit
    def encode(whole, pixels):
        return MODEL.apply({"params": whole}, pixels, method="encode_images")

    def featured(part):
        return part._replace(images=encode(whole, images.normalize(part.images)))

    want, _ = jitted_loss(*params_alone, batch)

    def by_frame(part, frames):
        return part._replace(has_image=part.has_image[:, None] & frames)

    T = [part.codes.shape[2] for part in batch]
    for seen, same in ((lambda t: np.ones(t, bool), True), (lambda t: np.arange(t) >= 3, False)):
        frames = [by_frame(featured(part), seen(t)) for part, t in zip(batch, T)]
        other, _ = jitted_loss(*params_alone, types.Batch(*frames))
        assert np.isclose(float(other), float(want), rtol=1e-6) == same
