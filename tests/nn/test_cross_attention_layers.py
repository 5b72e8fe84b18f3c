"""Models with cross-attention in some layers: parameters, results, gradients and gate means."""

import dataclasses

import closeness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stepping
import toy

from mvjax import gates, tree
from mvjax.nn import backbone
from mvjax.nn import compute as compute_lib
from mvjax.nn import model as model_lib

LAYERS = (0, 2)
ADAPTERS = ("norm_xa", "xa", "gate", "gate_alpha")
DESIGNS = {
    "shared": {},
    "nothing shared": {"share": "none", "dim": 16},
    "shared gate": {"share_gate": True, "dim": 12},
}


def config_of(name, layers=LAYERS):
    return toy.with_cross_attention(**DESIGNS[name], layers=layers)


@pytest.mark.parametrize("name", list(DESIGNS))
def test_parameters_exist_where_a_layer_has_cross_attention(name):
    kept, whole = (
        tree.flatten(jax.eval_shape(model_lib.VisionSpeech(c).init, jax.random.key(0))["params"])
        for c in (config_of(name), config_of(name, ()))
    )
    assert kept.keys() == whole.keys()
    for path, leaf in whole.items():
        shape = leaf.shape
        if path.startswith("backbone/blocks/") and path.split("/")[2] in ADAPTERS:
            shape = (len(LAYERS), *shape[1:])
        assert kept[path].shape == shape, path
    dim = config_of(name).image_width
    parent = "backbone/blocks/xa/" if name == "nothing shared" else "xa/"
    assert kept[f"{parent}k/kernel"].shape[-3] == kept["image/norm/scale"].shape[0] == dim
    assert ("image/proj/kernel" in kept) == (dim != toy.MODEL.siglip.width)


def test_rows_are_spread_to_neighbors_and_gathered_again():
    deep = dataclasses.replace(toy.MODEL.backbone, layers=6)
    xa = dataclasses.replace(toy.MODEL.cross_attention, layers=(1, 2, 4))
    config = dataclasses.replace(toy.MODEL, backbone=deep, cross_attention=xa)
    blocks = {"gate": {"up": np.array([10, 20, 40])}, "norm_xa": {"scale": np.eye(3)}, "mlp": 7}
    whole = backbone.expand_adapters(blocks, config)
    assert whole["gate"]["up"].tolist() == [10, 10, 20, 20, 40, 40] and whole["mlp"] == 7
    jax.tree.map(np.testing.assert_array_equal, backbone.select_adapters(whole, config), blocks)


@pytest.mark.parametrize(
    "fields",
    [
        {"gate": gates.Conditional(7, "tanh"), "share": "kv", "dim": 16},
        {"gate": gates.Constant("tanh"), "share": "none"},
    ],
    ids=str,
)
def test_the_others_do_nothing(fields):
    """As where all layers have it and the gate of layer 1 is tanh(0) = 0."""
    config, whole = (toy.with_cross_attention(**fields, layers=x) for x in (LAYERS, ()))
    weights = toy.params(config)
    blocks = backbone.expand_adapters(weights["backbone"]["blocks"], config)
    shut = jax.tree.map(lambda leaf: jnp.asarray(leaf).at[1].set(0.0), blocks["gate"])
    spine = {**weights["backbone"], "blocks": {**blocks, "gate": shut}}
    codes, tokens = (
        toy.codes(),
        np.random.default_rng(3).standard_normal((2, 4, config.image_width)).astype(np.float32),
    )
    z, gate_means = toy.apply(
        "hidden", codes, toy.apply("keys_values", tokens, config=config), config=config
    )
    np.testing.assert_array_equal(np.any(np.asarray(gate_means), axis=(1, 2)), [True, False, True])
    run = {"config": whole, "weights": {**weights, "backbone": spine}}
    want, _ = toy.apply("hidden", codes, toy.apply("keys_values", tokens, **run), **run)
    closeness.assert_close(z, want)


def test_every_parameter_that_exists_learns():
    config = config_of("nothing shared")
    model = model_lib.VisionSpeech(config, compute_lib.Compute("frozen"))

    def loss(params):
        args = jnp.asarray(toy.codes()), jnp.asarray(toy.pixels())
        return jnp.square(model.apply({"params": params}, *args, depth_codebooks=0)[0]).sum()

    grads = jax.jit(jax.grad(loss))(toy.params(config))
    for path, leaf in tree.flatten(grads["backbone"]["blocks"]).items():
        assert np.all(np.isfinite(leaf))
        rows = np.abs(leaf).reshape(len(leaf), -1).max(axis=1)
        assert np.all(rows > 0), path


def test_steps_equal_the_whole_and_report_over_all_layers():
    config = config_of("nothing shared")
    codes, kv = toy.codes(), toy.apply("image_kv", toy.pixels(), config=config)
    z, gate_means = toy.apply("hidden", codes, kv, config=config)
    for t, out in enumerate(stepping.backbone(codes, kv, config=config)):
        closeness.assert_close(out.z, z[:, t])
        # as kyuteye_pt: the sum over layers with cross-attention, divided by all (reference 2.8)
        np.testing.assert_allclose(
            out.gate, (gate_means[0, :, t] + gate_means[2, :, t]) / 3, atol=1e-6
        )


def test_training_gets_the_gates_of_the_layers_with_cross_attention():
    config = config_of("shared")
    codes = toy.codes()
    output = toy.apply("__call__", codes, toy.pixels(), config=config, depth_codebooks=0)
    assert output.gates.shape == (2, toy.B, toy.T) and np.all(output.gates > 0)


def test_layers_that_do_not_exist_are_refused():
    for layers in [(2, 0), (1, 1), (-1, 0)]:
        with pytest.raises(ValueError, match="layers: expected different numbers from 0 on"):
            toy.with_cross_attention(layers=layers)
    with pytest.raises(ValueError, match=r"cross_attention.layers: expected numbers below.*3, got"):
        toy.with_cross_attention(layers=(0, 3))
    shallow = dataclasses.replace(toy.MODEL.backbone, layers=1)
    with pytest.raises(ValueError, match="below backbone.layers = 1"):
        dataclasses.replace(toy.with_cross_attention(layers=LAYERS), backbone=shallow)
