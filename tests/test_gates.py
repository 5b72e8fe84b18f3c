"""Gates as they begin (reference section 2.6), and what is reported of them (2.8)."""

import dataclasses
import json

import closeness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stepping
import toy

from mvjax import gates
from mvjax.config import schema, text
from mvjax.export import targets
from mvjax.nn import attention, xattn
from mvjax.nn import model as model_lib
from mvjax.weights import kyutai

U = np.random.default_rng(0).standard_normal((2, 5, 24)).astype(np.float32)


def initial(gate):
    return {
        path: spec.init(jax.random.key(i), spec.shape)
        for i, (path, spec) in enumerate(gate.params(24, 4).items())
    }


@pytest.mark.parametrize(
    ("gate", "mean", "spread"),
    [
        (gates.Constant("tanh"), 0.0, 0.0),
        (gates.Constant("sigmoid"), 0.0179862, 1e-6),
        (gates.Conditional(7, "tanh"), 0.0, 0.9),
        (gates.Conditional(7, "sigmoid"), 0.018, 0.025),
        (gates.Conditional(7, "tanh", bias=True), 0.0, 0.9),
        (gates.Conditional(7, "sigmoid", bias=True), 0.018, 0.025),
    ],
    ids=str,
)
def test_initial_gate(gate, mean, spread):
    g = np.asarray(gate(initial(gate), toy.seen(jnp.asarray(U))))
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
    same = biased({**params, "up/bias": at_first["up/bias"]}, toy.seen(jnp.asarray(U)))
    np.testing.assert_allclose(same, plain(params, toy.seen(jnp.asarray(U))), atol=1e-6)
    bias = np.linspace(-3, 3, 24, dtype=np.float32)
    g = biased({**params, "up/bias": jnp.asarray(bias)}, toy.seen(jnp.asarray(U)))
    down, up = (np.asarray(params[f"{name}/kernel"]) for name in ("down", "up"))
    logits = np.maximum(U @ down, 0) @ up + bias
    want = np.tanh(logits) if activation == "tanh" else 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(g, want, atol=1e-5)
    assert biased.upstream()["up/bias"] == "alpha.2.bias"


def test_the_released_gate_has_an_eighth_of_the_width():
    config = schema.ModelConfig()
    gate = config.cross_attention.gate
    assert gate == gates.Conditional(int(0.125 * config.backbone.width), "sigmoid")
    sizes = [int(np.prod(spec.shape)) for spec in gate.params(4096, 32).values()]
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


OWN = {
    "mlp of both, a head": gates.Mlp(7, output="head", sees="both", shift=1.0),
    "mlp of x, one": gates.Mlp(7, output="scalar", sees="x", activation="tanh"),
    "null key": gates.NullKey(threshold=0.5),
    "agreement": gates.Agreement(rank=3),
    "dead zone": gates.DeadZone(7, floor=0.3),
    "local window": gates.LocalWindow(3),
}


@pytest.mark.parametrize("name", [name for name in OWN if name != "mlp of x, one"])
def test_our_gates_are_the_same_in_training_and_in_the_runtime(name):
    """Frame by frame as in whole sequences; rows without an image are plain Moshi bit for bit."""
    config = toy.with_cross_attention(gate=OWN[name])
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, layers=1))
    codes = toy.codes(config=config)
    sees = np.ones((toy.B, toy.T), bool)
    sees[1] = False
    sees[0, 4] = False  # and what a frame without the image says is remembered
    kv = toy.apply("image_kv", toy.pixels(), config=config)
    z, gate_means = toy.apply("hidden", codes, kv, sees, config=config)
    blind, _ = toy.apply("hidden", codes, None, config=config)
    np.testing.assert_array_equal(z[1], blind[1])
    assert np.abs(z[0] - blind[0]).max() > 1e-3 and np.asarray(gate_means)[:, 0].std() > 1e-4
    for t, out in enumerate(stepping.backbone(codes, kv, sees, config=config)):
        closeness.assert_close(out.z, z[:, t])
        np.testing.assert_allclose(out.gates, gate_means[:, :, t].T, atol=1e-6)
        assert not np.any(out.gates[1])


@pytest.mark.parametrize("gate", OWN.values(), ids=OWN)
def test_every_parameter_of_our_gates_learns_and_no_upstream_runtime_has_them(gate):
    config = toy.with_cross_attention(gate=gate)
    x, q = jnp.asarray(U), jnp.asarray(U.reshape(2, 5, 4, 6))
    seen = gates.Seen(jnp.roll(x, 1), x, q, q[..., 0] + q[..., 1], q[..., 2])
    rng = np.random.default_rng(1)
    params = {p: rng.standard_normal(s.shape) * 0.3 for p, s in gate.params(24, 4).items()}
    params = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in params.items()}
    for path, grad in jax.grad(lambda p: jnp.sum(jnp.sin(gate(p, seen))))(params).items():
        assert np.all(np.isfinite(grad)) and np.mean(np.abs(grad) > 0) > 0.8, path
    run = toy.planned(config)
    assert text.from_json(json.loads(json.dumps(text.to_json(run)))) == run
    for target in targets.TARGETS:
        assert any(repr(gate) in problem for problem in targets.refusals(config, target)), target
    if params:
        with pytest.raises(ValueError, match="expected a gate with names in the Kyutai layout"):
            kyutai.vis_rules(config)


def test_gates_of_bfloat16_are_float32():
    """And u * g is, with matmuls in bfloat16, under strict rules of promotion."""
    for gate in (None, gates.Constant(), gates.Conditional(7), *OWN.values()):
        q, x = jnp.ones((2, 5, 4, 6), jnp.bfloat16), jnp.ones((2, 5, 24), jnp.bfloat16)
        params = {} if gate is None else initial(gate)
        added, mean = xattn.apply_gate(
            gate, params, q, out=lambda heads: heads.reshape(2, 5, 24), x=x, q=q,
            match=q[..., 0].astype(jnp.float32), local=None if gate != OWN["local window"] else
            xattn.Local(q, q[..., 0].astype(jnp.float32)), tokens=9,
        )  # fmt: skip
        assert added.dtype == mean.dtype == jnp.float32 and added.shape == x.shape


def test_a_null_key_is_one_more_token_of_value_zero():
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((2, n, 4, 6)).astype(np.float32) for n in (5, 9))
    gate = gates.NullKey()
    params = {"key": rng.standard_normal((4, 6)).astype(np.float32), "threshold": np.arange(4.0)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    match = attention.match(jnp.asarray(q), jnp.asarray(k))
    g = gate(params, gates.Seen(jnp.ones((2, 5, 24)), jnp.ones((2, 5, 24)), jnp.asarray(q), match))
    logits = np.einsum("BTNH,BSNH->BTNS", q, k) / 6**0.5
    null = np.einsum("BTNH,NH->BTN", q, params["key"]) / 6**0.5 + np.arange(4.0) + np.log(9)
    whole = np.exp(logits).sum(-1)
    np.testing.assert_allclose(g, whole / (whole + np.exp(null)), atol=1e-5)


def test_a_dead_zone_shuts_and_can_open_again():
    gate, u = gates.DeadZone(3), jnp.asarray(U)
    params = {name: jnp.asarray(x) for name, x in initial(gate).items()}
    begins = gate({**params, "up/kernel": jnp.zeros((3, 24))}, toy.seen(u))
    np.testing.assert_allclose(begins, jax.nn.sigmoid(-4.0), atol=1e-6)
    low = {**params, "up/kernel": -jnp.abs(params["up/kernel"]) * 50}
    g, grad = jax.value_and_grad(lambda p: jnp.sum(gate(p, toy.seen(u))))(low)
    shut = np.asarray(gate(low, toy.seen(u)))
    assert np.mean(shut == 0) > 0.5 and shut.min() == 0 and g == shut.sum()
    assert np.all(np.any(np.abs(grad["up/kernel"]) > 0, axis=1))
    with pytest.raises(ValueError, match="floor: expected between 0 and 1, got 1"):
        gates.DeadZone(floor=1.0)


@pytest.mark.parametrize("gate", [gates.Mlp(7, output="head"), gates.NullKey(), gates.Agreement()])
def test_per_head_gates_begin_almost_shut(gate):
    x, q = jnp.asarray(U), jnp.asarray(U.reshape(2, 5, 4, 6))
    g = gate(initial(gate), gates.Seen(x * 0.1, x, q, jnp.zeros((2, 5, 4))))
    assert g.shape == (2, 5, 4) and g.dtype == jnp.float32
    np.testing.assert_allclose(g, 0.018, atol=0.02)
