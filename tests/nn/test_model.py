"""The whole model: structure at full size, parity with PyPI moshi, and invariants."""

import dataclasses

import closeness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stepping
import toy

from mvjax import gates, tree
from mvjax.config import schema
from mvjax.nn import alignment
from mvjax.nn import compute as compute_lib
from mvjax.nn import model as model_lib

ADAPTERS = schema.TrainConfig().trained


def forward(codes, pixels=None, has_image=None, *, config=toy.MODEL, weights=None, levels=3):
    return toy.apply(
        "__call__", codes, pixels, has_image, config=config, weights=weights, depth_codebooks=levels
    )


def test_full_size_structure_without_memory():
    model = model_lib.VisionSpeech(schema.ModelConfig())
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    adapters, frozen = tree.partition(shapes, ADAPTERS)
    count = lambda t: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(t))  # noqa: E731
    assert count(frozen["backbone"]) == 6_973_366_272
    assert count(frozen["depformer"]) == 714_362_880
    assert count(frozen["image"]["encoder"]) == 413_327_088
    assert count(adapters) == 206_184_448
    assert shapes["backbone"]["blocks"]["attn"]["qkv"]["kernel"].shape == (32, 4096, 3, 32, 128)


@pytest.mark.parity
def test_training_forward_equals_moshi():
    torch = pytest.importorskip("torch")
    twin = pytest.importorskip("moshi_twin").build(toy.params(), toy.MODEL)
    codes = toy.codes()
    codes[1, 1:, 6:] = -1  # a row whose audio ends early
    codes[0, 0, 7:] = -1
    with torch.no_grad():
        want = twin(torch.tensor(codes).long())
    got = forward(codes)
    np.testing.assert_allclose(got.text_logits, want.text_logits[:, 0].numpy(), atol=1e-4)
    mask = want.mask.numpy()
    assert mask.sum() == (toy.B * toy.T * 3) - 2 * 2 - 3 * 3 + 2
    mine = np.swapaxes(got.audio_logits, 1, 2)
    np.testing.assert_allclose(mine[mask], want.logits.numpy()[mask], atol=1e-4)


@pytest.mark.parity
def test_text_rows_equal_moshi_with_absent_audio():
    torch = pytest.importorskip("torch")
    twin = pytest.importorskip("moshi_twin").build(toy.params(), toy.MODEL)
    codes = toy.codes()
    codes[:, 1:] = -1
    with torch.no_grad():
        want = twin(torch.tensor(codes).long()).text_logits[:, 0].numpy()
    np.testing.assert_allclose(forward(codes[:, :1], levels=0).text_logits, want, atol=1e-4)


def test_fewer_levels_are_the_first_ones():
    codes = toy.codes()
    whole = forward(codes)
    two = forward(codes, levels=2)
    closeness.assert_close(two.audio_logits, whole.audio_logits[:, :, :2])
    assert forward(codes, levels=0).audio_logits is None


@pytest.mark.parametrize("start", ["initial", "nothing"])
def test_text_row_alone_is_the_row_with_absent_audio(start):
    config = with_absent_start(start)
    codes = toy.codes()
    codes[:, 1:] = -1
    whole = forward(codes, toy.pixels(), levels=0, config=config)
    alone = forward(codes[:, :1], toy.pixels(), levels=0, config=config)
    closeness.assert_close(whole.text_logits, alone.text_logits)


def test_the_start_of_absent_audio_matters():
    codes = toy.codes()[:, :1]
    initial, nothing = (
        forward(codes, levels=0, config=with_absent_start(start)).text_logits
        for start in ("initial", "nothing")
    )
    assert np.abs(initial - nothing).max() > 1e-3


def test_text_decoding_equals_the_training_forward():
    codes = toy.codes()[:, :1]
    want = forward(codes, levels=0).text_logits
    absent = np.full((2, toy.MODEL.codebooks - 1, codes.shape[2]), -1, np.int32)
    columns = alignment.delay_codes(jnp.concatenate([codes, absent], axis=1), toy.MODEL)
    for t, out in enumerate(stepping.backbone(columns[:, :, :-1], None)):
        closeness.assert_close(out.text_logits, want[:, t])


def with_absent_start(start):
    return dataclasses.replace(toy.MODEL, stream=schema.StreamConfig(absent_start=start))


@pytest.mark.parametrize("activation", ["tanh"])
def test_closed_gate_is_plain_moshi_bit_for_bit(activation):
    config = toy.with_cross_attention(gate=gates.Constant(activation))
    weights = toy.params(config)
    flat = tree.flatten(weights)
    flat["backbone/blocks/gate/alpha"] = jnp.zeros(3)
    weights = tree.unflatten(flat)
    codes = toy.codes()
    seeing = forward(codes, toy.pixels(), config=config, weights=weights)
    blind = forward(codes, config=config, weights=weights)
    np.testing.assert_array_equal(seeing.text_logits, blind.text_logits)
    np.testing.assert_array_equal(seeing.audio_logits, blind.audio_logits)
    assert not np.any(seeing.gates)


@pytest.mark.parametrize("gate", list(toy.GATES))
def test_rows_without_image_are_plain_moshi_bit_for_bit(gate):
    config = toy.with_cross_attention(gate=toy.GATES[gate])
    codes = toy.codes()
    mixed = forward(codes, toy.pixels(), jnp.array([True, False]), config=config)
    blind = forward(codes, config=config)
    np.testing.assert_array_equal(mixed.text_logits[1], blind.text_logits[1])
    np.testing.assert_array_equal(mixed.audio_logits[1], blind.audio_logits[1])
    assert not np.any(mixed.gates[:, 1]) and np.all(mixed.gates[:, 0] != 0)
    assert np.abs(mixed.text_logits[0] - blind.text_logits[0]).max() > 1e-3


def test_causality_by_gradient():
    kv = toy.apply("image_kv", toy.pixels())
    model = model_lib.VisionSpeech(toy.MODEL)
    table = toy.params()["backbone"]["text_emb"]["embedding"]

    @jax.jit
    def effect(t):
        """How much each column's text embedding moves the logits at t."""

        def logits(rows):
            weights = dict(toy.params())
            weights["backbone"] = {**weights["backbone"], "text_emb": {"embedding": rows}}
            ids = jnp.full((1, 7, toy.T), 3, jnp.int32).at[0, 0].set(jnp.arange(toy.T))
            one = jax.tree.map(lambda x: x[:1], kv)
            z, _ = model.apply({"params": weights}, ids, one, method="hidden")
            return jnp.sum(jnp.sin(z[0, t]))

        return jnp.abs(jax.grad(logits)(table)[: toy.T]).sum(-1)

    for t in range(toy.T):
        seen = np.asarray(effect(t)) > 0
        # three layers of a window of five frames see back 3 * 4 frames: the whole past here
        np.testing.assert_array_equal(seen, np.arange(toy.T) <= t)


@pytest.mark.parametrize("remat", ["none", "frozen", "attention", "full"])
def test_gradients_flow_to_adapters_only(remat):
    model = model_lib.VisionSpeech(toy.MODEL, compute_lib.Compute(remat))
    adapters, frozen = tree.partition(toy.params(), ADAPTERS)

    @jax.jit
    def grads(adapters):
        def loss(adapters):
            weights = {"params": tree.merge(adapters, frozen)}
            codes, pixels = jnp.asarray(toy.codes()), jnp.asarray(toy.pixels())
            out = model.apply(weights, codes, pixels, depth_codebooks=2)
            return jnp.sum(jnp.sin(out.text_logits)) + jnp.sum(jnp.sin(out.audio_logits))

        return jax.value_and_grad(loss)(adapters)

    value, got = grads(adapters)
    flat = tree.flatten(got)
    assert set(flat) == set(tree.flatten(adapters))
    assert all(np.all(np.isfinite(x)) and np.any(x != 0) for x in flat.values())
    # one leaf against a finite difference
    up = jax.tree.map(lambda x: x, adapters)
    step = 1e-2 * got["xa"]["q"]["kernel"] / jnp.linalg.norm(got["xa"]["q"]["kernel"])
    up["xa"]["q"]["kernel"] = adapters["xa"]["q"]["kernel"] + step
    expected = jnp.sum(step * got["xa"]["q"]["kernel"])
    np.testing.assert_allclose(grads(up)[0] - value, expected, rtol=0.1)


@pytest.mark.parametrize("share", ["qkv", "kv", "none"])
@pytest.mark.parametrize("share_gate", [False, True])
def test_step_by_step_equals_the_whole_sequence(share, share_gate):
    config = toy.with_cross_attention(share=share, share_gate=share_gate)
    columns = toy.codes(config=config)
    kv = toy.apply("image_kv", toy.pixels(), config=config)
    has_image = np.arange(toy.B * toy.T).reshape(toy.B, toy.T) % 3 > 0
    z, gate_means = toy.apply("hidden", columns, kv, has_image, config=config)
    # past the context of five, so the ring buffer wraps
    for t, out in enumerate(stepping.backbone(columns, kv, has_image, config=config)):
        closeness.assert_close(out.z, z[:, t])
        np.testing.assert_allclose(out.gate, np.mean(gate_means[:, :, t], axis=0), atol=1e-6)
        want = toy.apply("text_logits", z[:, t], config=config)
        closeness.assert_close(out.text_logits, want)
    assert t == toy.T - 1


def test_depth_steps_equal_teacher_forcing_with_what_it_chose():
    z = jnp.asarray(np.random.default_rng(5).standard_normal((toy.B, 24)), jnp.float32)
    text = jnp.array([4, 30])
    free = jnp.full((toy.B, 3), -2, jnp.int32)
    chosen, logits = stepping.depth(z, text, free)
    np.testing.assert_array_equal(chosen, np.argmax(logits, -1))
    want = toy.apply("depth_logits", z[:, None], text[:, None], chosen[:, None, :-1])
    closeness.assert_close(logits, want[:, 0])
    wanted = free.at[0, 1].set(7).at[1, 0].set(-1)
    forced, logits = stepping.depth(z, text, wanted)
    assert forced[0, 1] == 7 and forced[1, 0] == -1 and forced[0, 0] == chosen[0, 0]
    want = toy.apply("depth_logits", z[:, None], text[:, None], forced[:, None, :-1])
    closeness.assert_close(logits, want[:, 0])


def test_delays_by_hand():
    codes = jnp.array([[[10, 11, 12], [1, 2, 3], [4, 5, -1]], [[10, 11, 12], [-1] * 3, [7, 8, 9]]])
    V, C = toy.MODEL.text_vocab, toy.MODEL.audio_vocab
    for start, absent in (("nothing", [-1, -1, -1, -1]), ("initial", [C, C, -1, -1])):
        config = dataclasses.replace(with_absent_start(start), codebooks_out=1, delays=(0, 1, 2))
        got = alignment.delay_codes(codes, config)
        want = [
            [[V, 10, 11, 12], [C, C, 1, 2], [C, C, C, 4]],
            [[V, 10, 11, 12], absent, [C, C, C, 7]],
        ]
        np.testing.assert_array_equal(got, want)
    logits = jnp.arange(2 * 3 * 2.0).reshape(1, 3, 2, 2)
    back = alignment.undelay(logits, (0, 2))
    np.testing.assert_array_equal(back[0, :, 0], logits[0, :, 0])
    np.testing.assert_array_equal(back[0, :, 1], [[10.0, 11.0], [0, 0], [0, 0]])


def test_wrong_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="7 .config.delays., got 5"):
        alignment.delay_codes(jnp.zeros((2, 5, 3), jnp.int32), toy.MODEL)


def test_bfloat16_runs_and_is_close():
    config = dataclasses.replace(toy.MODEL, dtype="bfloat16")
    exact = forward(toy.codes(), toy.pixels())
    rough = forward(toy.codes(), toy.pixels(), config=config, weights=toy.params())
    assert rough.text_logits.dtype == jnp.float32
    scale = np.abs(exact.text_logits).max()
    np.testing.assert_allclose(rough.text_logits, exact.text_logits, atol=0.05 * scale)
