"""Delays and sampling on the host, and the PyTorch and MLX runtimes against the JAX model."""

import dataclasses
import functools

import closeness
import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvjax import gates, scopes, tree
from mvjax.config import schema
from mvjax.export import agreement, targets
from mvjax.nn import model as model_lib
from mvjax.runtimes import delays, interface
from mvjax.runtimes import sampling as host_sampling

TOY = exported.TOY
GATES = {
    "none": {"gate": None},
    "constant_tanh": {"gate": gates.Constant()},
    "constant_sigmoid": {"gate": gates.Constant("sigmoid")},
    "conditional_tanh": {"gate": gates.Conditional(3, "tanh")},
    "conditional_sigmoid": {"gate": gates.Conditional(3)},
    "shared": {"gate": gates.Conditional(3), "share_gate": True},
}
FRAMES = 12  # more than twice the context


def toy(name):
    adapters = schema.CrossAttentionConfig(**GATES[name])
    return dataclasses.replace(TOY, cross_attention=adapters)


@functools.cache
def forward(config):
    """The training forward, compiled once for each config."""
    model, Q = model_lib.VisionSpeech(config), config.codebooks_out
    return jax.jit(lambda p, c, x: model.apply({"params": p}, c, x, depth_codebooks=Q))


def jax_logits(config, params, pixels, outs, user):
    """Text and audio logits and gates of the training forward over what the runtime said."""
    T, Q = len(outs), config.codebooks_out
    rows = np.zeros((1, len(config.delays), T), np.int32)
    rows[0, 0] = [out.text_token for out in outs]
    for q, d in enumerate(config.delays[1 : 1 + Q]):
        rows[0, 1 + q, : T - d] = [out.audio_tokens[q] for out in outs[d:]]
    rows[0, 1 + Q :] = user
    images = None if pixels is None else jnp.asarray(pixels)
    out = forward(config)(params, jnp.asarray(rows), images)
    gates = np.zeros((config.backbone.layers, T), np.float32)
    gates[list(config.cross_attention_layers)] = out.gates[:, 0]
    return out.text_logits[0], out.audio_logits[0], gates.T


def assert_agree(config, params, pixels, outs, user):
    text, audio, gate = jax_logits(config, params, pixels, outs, user)
    T = len(outs)
    closeness.assert_close(exported.stacked(outs, "text_logits"), text, closeness.COMPOSED)
    for q, d in enumerate(config.delays[1 : 1 + config.codebooks_out]):
        said = exported.stacked(outs[d:], "audio_logits")[:, q]
        closeness.assert_close(said, audio[: T - d, q], closeness.COMPOSED)
    np.testing.assert_allclose(exported.stacked(outs, "gates"), gate, atol=1e-4)
    np.testing.assert_allclose([out.gate for out in outs], gate.mean(axis=1), atol=1e-4)


def test_columns_follow_the_table_of_the_reference():
    # streams: text, two of the assistant's, two of the user's; reference section 5.2, Rust and MLX
    sizes = interface.Sizes(
        delays=(0, 0, 1, 0, 1), codebooks_out=2, text_vocab=90, audio_vocab=80, image_size=0
    )
    buffer = delays.DelayBuffer(sizes)
    user = [np.array([100 * (s + 1), 100 * (s + 1) + 1]) for s in range(12)]
    text = [10 + s for s in range(12)]
    audio = [np.array([1000 * (s + 1), 1000 * (s + 1) + 1]) for s in range(12)]
    for s in range(12):
        if s == 0:
            want = [90, 80, 80, 80, 80]
        elif s == 1:
            want = [text[0], audio[0][0], 80, user[0][0], 80]
        else:
            want = [text[s - 1], audio[s - 1][0], audio[s - 1][1], user[s - 1][0], user[s - 2][1]]
        assert buffer.column(user[s]).tolist() == want, s
        assert buffer.forced_audio(None).tolist() == [-2, 80 if s == 0 else -2]
        assert buffer.forced_audio(np.array([7, 8])).tolist() == [7, 80 if s == 0 else 8]
        codes = buffer.push(text[s], audio[s])
        if s == 0:
            assert codes is None
        else:
            assert codes.tolist() == [audio[s - 1][0], audio[s][1]]
    buffer.reset()
    assert buffer.column(user[0]).tolist() == [90, 80, 80, 80, 80]


def test_sampling_on_the_host():
    logits = np.array([0.0, 3.0, 1.0, 2.0], np.float32)

    def draw(sampling, seed):
        return host_sampling.choose(
            logits, np.random.default_rng(seed).random(), sampling.temperature, sampling.top_k
        )

    assert draw(interface.GREEDY, 0) == 1
    top_2 = interface.Sampling(temperature=5.0, top_k=2)
    assert {draw(top_2, seed) for seed in range(40)} == {1, 3}
    with pytest.raises(ValueError, match="temperature 0 is greedy"):
        interface.Sampling(temperature=-1.0)


@pytest.mark.parametrize("name", GATES)
def test_torch_agrees_with_jax_for_every_gate(name, tmp_path):
    config = toy(name)
    params, folder = exported.write(config, "torch", tmp_path)
    pixels, user = exported.inputs(FRAMES)
    outs = agreement.talk(exported.open_model(folder), pixels, user)
    assert_agree(config, params, pixels, outs, user)


def test_what_is_wrong_is_seen(tmp_path):
    """The bounds of `assert_agree` are narrower than what a weight, a norm or a frame too late changes."""
    config = toy("conditional_sigmoid")
    params, folder = exported.write(config, "torch", tmp_path)
    pixels, user = exported.inputs(FRAMES)
    outs = agreement.talk(exported.open_model(folder), pixels, user)
    assert_agree(config, params, pixels, outs, user)
    flat = tree.flatten(params)
    kernel = flat["backbone/blocks/attn/out/kernel"].copy()
    kernel[1] *= 1.003  # of one layer, in its eighth bit
    wrong = tree.unflatten(flat | {"backbone/blocks/attn/out/kernel": kernel})
    depformer = dataclasses.replace(config.depformer, norm="variance")
    other = dataclasses.replace(config, depformer=depformer)
    for case in (
        (config, wrong, pixels, outs, user),
        (other, params, pixels, outs, user),
        (config, params, pixels, outs, np.roll(user, 1, axis=1)),
        (config, params, pixels[:, :, ::-1], outs, user),
    ):
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_agree(*case)


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("torch", {"dim": 14, "layers": (0, 2)}),
        ("torch", {"dim": 20, "gate": gates.Constant("sigmoid"), "layers": (0,)}),
        ("candle", {"dim": 14, "gate": gates.Conditional(3, bias=True)}),
        ("candle", {"dim": 20, "gate": gates.Conditional(3, "tanh", bias=True)}),
    ],
    ids=str,
)
def test_torch_agrees_with_jax_for_other_image_tokens_layers_and_biases(target, fields, tmp_path):
    adapters = schema.CrossAttentionConfig(**{"gate": gates.Conditional(3), **fields})
    config = dataclasses.replace(TOY, cross_attention=adapters)
    params, folder = exported.write(config, target, tmp_path)
    pixels, user = exported.inputs(FRAMES)
    outs = agreement.talk(exported.open_model(folder), pixels, user)
    assert_agree(config, params, pixels, outs, user)


def test_mlx_agrees_with_jax(tmp_path):
    config = toy("conditional_sigmoid")
    params, folder = exported.write(config, "mlx", tmp_path)
    pixels, user = exported.inputs(FRAMES)
    outs = agreement.talk(exported.open_model(folder), pixels, user)
    assert_agree(config, params, pixels, outs, user)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_the_image_is_seen_within_the_scope_only(target, tmp_path):
    scope = scopes.Scope(2, 5 if target == "torch" else None)
    adapters = dataclasses.replace(TOY.cross_attention, gate=gates.Conditional(3), scope=scope)
    config = dataclasses.replace(TOY, cross_attention=adapters)
    params, folder = exported.write(config, target, tmp_path)
    outs = exported.talk(exported.open_model(folder), FRAMES)
    last = 7 if target == "torch" else FRAMES
    assert [out.gate > 0 for out in outs] == [2 <= s < last for s in range(FRAMES)]
    if target == "torch":
        assert_agree(config, params, exported.inputs(FRAMES)[0], outs, exported.inputs(FRAMES)[1])
