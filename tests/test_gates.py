"""Gates as they begin (reference section 2.6), and what is reported of them (2.8)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stepping
import toy

from mvjax import gates
from mvjax.config import schema
from mvjax.nn import model as model_lib

U = np.random.default_rng(0).standard_normal((2, 5, 24)).astype(np.float32)


def initial(gate):
    return {
        path: spec.init(jax.random.key(i), spec.shape)
        for i, (path, spec) in enumerate(gate.params(24).items())
    }


@pytest.mark.parametrize(
    ("gate", "mean", "spread"),
    [
        (gates.Constant("tanh"), 0.0, 0.0),
        (gates.Constant("sigmoid"), 0.01799, 1e-5),
        (gates.Conditional(7, "tanh"), 0.0, 0.9),
        (gates.Conditional(7, "sigmoid"), 0.018, 0.025),
        (gates.Conditional(7, "tanh", bias=True), 0.0, 0.9),
        (gates.Conditional(7, "sigmoid", bias=True), 0.018, 0.025),
    ],
    ids=str,
)
def test_initial_gate(gate, mean, spread):
    g = np.asarray(gate(initial(gate), jnp.asarray(U)))
    assert g.shape == U.shape and g.dtype == np.float32
    np.testing.assert_allclose(g, mean, atol=spread)
    constant = isinstance(gate, gates.Constant)
    assert np.all(g == g[0, 0, 0]) == constant
    assert constant or np.all(g.std(axis=(0, 1)) > 0)  # one value a channel, of its own input


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_a_learned_bias_stands_in_for_the_shift(activation):
    """kyuteye_rs's LearnableBias: act(up(relu(down(u))) + bias), nothing subtracted."""
    plain, biased = (gates.Conditional(7, activation, bias=b) for b in (False, True))
    params = initial(plain)
    at_first = initial(biased)
    np.testing.assert_array_equal(at_first["up/bias"], -4.0 if activation == "sigmoid" else 0.0)
    same = biased({**params, "up/bias": at_first["up/bias"]}, jnp.asarray(U))
    np.testing.assert_allclose(same, plain(params, jnp.asarray(U)), atol=1e-6)
    bias = np.linspace(-3, 3, 24, dtype=np.float32)
    g = biased({**params, "up/bias": jnp.asarray(bias)}, jnp.asarray(U))
    down, up = (np.asarray(params[f"{name}/kernel"]) for name in ("down", "up"))
    logits = np.maximum(U @ down, 0) @ up + bias
    want = np.tanh(logits) if activation == "tanh" else 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(g, want, atol=1e-5)
    assert biased.upstream()["up/bias"] == "alpha.2.bias"


def test_the_released_gate_has_an_eighth_of_the_width():
    config = schema.ModelConfig()
    gate = config.cross_attention.gate
    assert gate == gates.Conditional(int(0.125 * config.backbone.width), "sigmoid")
    sizes = [int(np.prod(spec.shape)) for spec in gate.params(4096).values()]
    assert sum(sizes) * config.backbone.layers == 134_217_728  # reference section 4.1


@pytest.mark.parametrize("share", ["qkv", "kv"])
@pytest.mark.parametrize("share_gate", [True, False])
def test_a_layer_has_its_own_factor_where_all_else_is_shared(share, share_gate):
    config = toy.with_cross_attention(share=share, share_gate=share_gate)
    params = jax.eval_shape(model_lib.VisionSpeech(config).init, jax.random.key(0))["params"]
    assert ("gate_alpha" in params["backbone"]["blocks"]) == (share_gate and share == "qkv")
    assert ("gate" in params) == share_gate
    if share_gate and share == "qkv":
        init = model_lib.VisionSpeech(config).init
        alpha = jax.jit(lambda k: init(k)["params"]["backbone"]["blocks"]["gate_alpha"])
        np.testing.assert_array_equal(alpha(jax.random.key(0)), np.ones(3))


def test_the_last_ten_layers_are_reported():
    deep = dataclasses.replace(toy.MODEL.backbone, layers=12)
    config = dataclasses.replace(toy.MODEL, backbone=deep)
    codes = toy.codes(config=config)
    kv = toy.apply("image_kv", toy.pixels(), config=config)
    _, gate_means = toy.apply("hidden", codes[:, :, :1], kv, config=config)
    assert gate_means.shape == (12, toy.B, 1)
    reported = next(stepping.backbone(codes, kv, config=config)).gate
    np.testing.assert_allclose(reported, np.mean(gate_means[2:, :, 0], axis=0), atol=1e-6)
    assert np.all(np.abs(reported - np.mean(gate_means[:, :, 0], axis=0)) > 1e-6)
