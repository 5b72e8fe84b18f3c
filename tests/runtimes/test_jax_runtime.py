"""The JAX runtime: nothing is compiled for what happens to conversations; its KV cache."""

import dataclasses

import exported
import jax
import jax.numpy as jnp
import numpy as np
import toy

from mvjax.config import schema
from mvjax.runtimes import interface
from mvjax.runtimes.jax import frames, kv_cache, weights
from mvjax.runtimes.jax import model as jax_model

SMALL = dataclasses.replace(
    exported.TOY,
    backbone=dataclasses.replace(exported.TOY.backbone, layers=1),
    depformer=dataclasses.replace(exported.TOY.depformer, layers=1),
    siglip=dataclasses.replace(exported.TOY.siglip, layers=1),
)


def test_whatever_happens_to_conversations_compiles_nothing(caplog):
    """They join, leave, wait, reset, change images, sampling and what is forced; `warm_up` has it all."""

    def compiled():
        names = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
        caplog.clear()
        return names

    model = jax_model.JaxModel(SMALL, exported.random_params(SMALL))
    pixels, user = exported.inputs(9)
    slots = model.slots(2)
    with jax.log_compiles():
        slots.warm_up()
        assert sum("_step" in name for name in compiled()) == 1
        first = slots.join(model.encode_image(pixels), seed=1)
        say = {first: interface.Turn(user[:, 0])}
        slots.step(say)
        how = interface.Sampling(0.9, 5, 1.3, 4, 0.5), interface.Sampling(0.7, 3)
        other = slots.join(text_sampling=how[0], audio_sampling=how[1], seed=2)
        say[other] = interface.Turn(user[:, 1], text=4, audio=np.array([1, -2, 3]))
        slots.step(say)
        slots.show(other, model.encode_image(-pixels))
        slots.show(first, None)
        slots.resample(first, text_sampling=how[0], audio_sampling=interface.GREEDY)
        slots.step(say)
        slots.reset(first)
        slots.leave(other)
        for codes in user.T:  # past the context
            slots.step({first: interface.Turn(codes)})
        assert slots.join() == other
        slots.step(say)
        assert compiled() == []


def test_a_row_attends_to_all_its_past_however_much_of_the_cache_is_read():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((4, *s, 3), np.float32) for s in ((1,), (1600,), (1600,)))
    attend = jax.jit(kv_cache.attend_to_past)
    for last in (0, 126, 127, 128, 511, 512, 1599, 1600, 4000):
        position = np.array([last, last // 2], np.int32)
        u = attend(
            jnp.asarray(q.reshape(2, 2, 3)), kv_cache.Held(jnp.asarray(k), jnp.asarray(v)), position
        )
        for head in range(4):
            seen = min(position[head // 2] + 1, 1600)
            p = np.exp(k[head, :seen] @ q[head, 0] * 3**-0.5)
            want = p @ v[head, :seen] / p.sum()
            np.testing.assert_allclose(u[head // 2, head % 2], want, atol=1e-5)


def test_columns_multiply_as_matrices_do():
    rng = np.random.default_rng(0)
    params = {
        "one": {"kernel": rng.integers(-9, 9, (2, 3, 4), np.int8), "scale": rng.random((1, 1, 4))},
        "two": {"kernel": rng.integers(-9, 9, (6, 2, 5), np.int8), "scale": rng.random((1, 2, 5))},
    }
    x = jnp.asarray(rng.standard_normal((3, 6), np.float32))
    for read in (lambda of: of.matrix("one", inputs=2), lambda of: of.matrices("two")):
        found = [read(weights._Leaves(params, toy.MODEL, columns)) for columns in (False, True)]
        assert [type(matrix) for matrix in found] == [weights.Matrix, weights.Columns]
        y, columns = (frames._matmul(x, matrix) for matrix in found)
        np.testing.assert_allclose(columns, y, rtol=1e-5)


def test_accelerators_write_the_same_cache_as_a_cpu():
    rng = np.random.default_rng(0)
    held, new = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in ((6, 5, 4), (3, 2, 4)))
    want = np.array(held).reshape(3, 2, 5, 4)
    slot = jnp.array([4, 0, 2])
    want[np.arange(3), :, slot] = new
    for write in (kv_cache._scatter, kv_cache._write_rows):
        np.testing.assert_array_equal(write(held, new, slot), want.reshape(held.shape))


def test_programs_are_the_same_however_a_conversation_begins(caplog):
    """So a certificate, which is about files that do not tell it, compiles what the run itself runs."""
    params, (pixels, user) = exported.random_params(SMALL), exported.inputs(3)
    late = dataclasses.replace(
        SMALL, stream=schema.StreamConfig(first_step_forcing=False, user_early=True)
    )
    said = []
    for config, begins in ((SMALL, (True, False)), (late, (False, True))):
        with jax.log_compiles():
            model = jax_model.JaxModel(config, params)
            session = model.session(model.encode_image(pixels), probes=True)
            said.append([session.step(codes).probes.text_logits for codes in user.T])
        assert (model.first_step_forcing, model.user_early) == begins
        names = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
        caplog.clear()
    assert names == []
    assert not np.array_equal(*said)


def test_weights_of_a_cpu_are_read_where_they_lie():
    params = exported.random_params(SMALL)
    on_device = jax.tree.map(jnp.asarray, params)
    for columns in (False, True):
        read = weights.unstack(on_device, SMALL, columns=columns)
        traced = jax.jit(lambda p: weights.unstack(p, SMALL, columns=columns))(params)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, read, traced)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(read))
