"""The layout of kyuteye_mlx: names, round trips, relation to the PyTorch layout, refusals."""

import dataclasses
import json
import re

import numpy as np
import pytest
import toy

from mvjax import gates, tree
from mvjax.config import schema
from mvjax.export import runtime_configs, targets, weight_files
from mvjax.weights import kyutai, mlx, rules, safetensors_io

TOY = toy.EXPORTED_17


def with_adapters(**changes):
    adapters = dataclasses.replace(TOY.cross_attention, **changes)
    return dataclasses.replace(TOY, cross_attention=adapters)


def random_params(config):
    rng = np.random.default_rng(0)
    shapes = rules.leaf_shapes(mlx.mlx_rules(config), kyutai.sizes(config))
    return tree.unflatten({p: rng.standard_normal(s).astype("f") for p, s in shapes.items()})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip(dtype, tmp_path):
    config = with_adapters(gate=gates.Conditional(hidden=3))
    params = random_params(config)
    path = tmp_path / "m.safetensors"
    weight_files.save_exported(path, params, config, "mlx", dtype=dtype)
    loaded = tree.flatten(weight_files.load_exported(path, config, "mlx"))
    for p, leaf in tree.flatten(params).items():
        assert loaded[p].dtype == dtype
        np.testing.assert_array_equal(loaded[p], leaf.astype(np.dtype(dtype)), err_msg=p)


def test_the_same_tree_in_both_layouts(tmp_path):
    params = random_params(TOY)
    weight_files.save_exported(tmp_path / "pt.safetensors", params, TOY, "torch")
    weight_files.save_exported(tmp_path / "mlx.safetensors", params, TOY, "mlx")
    a = safetensors_io.read(tmp_path / "pt.safetensors")
    b = safetensors_io.read(tmp_path / "mlx.safetensors")
    xa, layer = "cross_attention.mha.", "transformer.layers.1."
    slice5 = "depformer.slices.5.transformer.layers.1."
    # reference section 4.5, row by row
    fused = a[f"llm.transformer.layers.0.{xa}in_proj_weight"]
    depth_in = np.split(a["depformer.layers.1.self_attn.in_proj_weight"], 8)
    depth_out = np.split(a["depformer.layers.1.self_attn.out_proj.weight"], 8)
    gate = "cross_attention.gate.alpha."
    for name, want in {
        "text_emb.weight": a["llm.text_emb.weight"],
        "out_norm.weight": a["llm.out_norm.alpha"][0, 0],
        "audio_embs.11.weight": a["audio_emb.11.weight"],
        f"{layer}self_attn.in_proj.weight": a[f"llm.{layer}self_attn.in_proj_weight"],
        f"{layer}norm_cross.weight": a[f"llm.{layer}norm_cross.alpha"][0, 0],
        f"transformer.layers.0.{xa}q_proj.weight": fused[:24],
        f"transformer.layers.0.{xa}kv_proj.weight": fused[24:],
        f"{layer}{gate}layers.2.weight": a[f"llm.{layer}{gate}2.weight"],
        "depformer.slices.5.linear_in.weight": a["depformer_in.5.weight"],
        "depformer.slices.5.linear_out.weight": a["audio_linears.5.weight"],
        "depformer.slices.0.emb.weight": a["depformer_text_emb.weight"],
        "depformer.slices.5.emb.weight": a["depformer_emb.4.weight"],
        f"{slice5}self_attn.in_proj.weight": depth_in[5],
        f"{slice5}self_attn.out_proj.weight": depth_out[5],
        f"{slice5}norm2.weight": a["depformer.layers.1.norm2.alpha"][0, 0],
        f"{slice5}gating.linear_in.weight": a["depformer.layers.1.gating.5.linear_in.weight"],
        "transformer.image_prefix.proj_xa.bias": a["image_prefix.proj_xa.bias"],
        "transformer.image_prefix.norm_xa.weight": a["image_prefix.norm_xa.alpha"][0, 0],
        "img_embedder.model.embeddings.patch_embedding.weight": a[
            "image_prefix.enc.model.embeddings.patch_embedding.weight"
        ],
    }.items():
        np.testing.assert_array_equal(b[name], want, err_msg=name)
    assert not any(re.match(r"transformer\.layers\.[12]\.cross_attention\.mha", n) for n in b)


def test_released_sizes_count_every_parameter():
    config = schema.ModelConfig()
    shapes = rules.tensor_shapes(mlx.mlx_rules(config), kyutai.sizes(config))
    copied = 7 * 6 * 2 * 1024  # norms of the depth transformer
    assert sum(int(np.prod(s)) for s in shapes.values()) == 8_307_240_688 + copied


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"gate": gates.Constant()}, "Constant(activation='tanh')"),
        (
            {"gate": gates.Conditional(3, "tanh")},
            "Conditional(hidden=3, activation='tanh', bias=False)",
        ),
        ({"gate": gates.Conditional(3, bias=True)}, "bias=True): kyuteye_mlx: no gate has a bias"),
        ({"dim": 14}, "cross_attention.dim=14, backbone.width=24: kyuteye_mlx: keys and values"),
        ({"dim": 20}, "siglip.width=20: kyuteye_mlx: image features always go through proj_xa"),
        ({"layers": (0, 2)}, "cross_attention.layers=(0, 2): kyuteye_mlx: every layer has"),
        (
            {"gate": gates.Conditional(5)},
            "backbone.width=24: kyuteye_mlx: gates are built with hidden = int(0.125 x",
        ),
        ({"share_gate": True}, "share_gate=True"),
        ({"share": "kv"}, "share='kv'"),
        ({"share": "none"}, "share='none'"),
    ],
)
def test_designs_without_a_place_are_refused_by_name(changes, name, tmp_path):
    config = with_adapters(**changes)
    with pytest.raises(ValueError, match=re.escape(name)):
        weight_files.to_tensors({}, config, "mlx")


def test_variance_in_the_depth_transformer_is_refused():
    depformer = dataclasses.replace(TOY.depformer, norm="variance")
    problems = targets.refusals(dataclasses.replace(TOY, depformer=depformer), "mlx")
    assert len(problems) == 1
    assert "depformer.norm='variance'" in problems[0]


def test_truncated_and_renamed_files(tmp_path):
    path = tmp_path / "m.safetensors"
    weight_files.save_exported(path, random_params(TOY), TOY, "mlx")
    tensors = safetensors_io.read(path)
    tensors["out_norm.weights"] = tensors.pop("out_norm.weight")
    tensors["depformer.slices.3.transformer.layers.0.norm1.weight"] += 1
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match=r"m\.safetensors: 2 of \d+.*\n  out_norm.weight: missing"):
        weight_files.load_exported(path, TOY, "mlx")
    tensors["out_norm.weight"] = tensors.pop("out_norm.weights")
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match=r"slices\.3\..*expected a copy of depformer\.slices\.0"):
        weight_files.load_exported(path, TOY, "mlx")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"m\.safetensors.*cut off"):
        weight_files.load_exported(path, TOY, "mlx")


def test_config_gives_kyuteye_mlx_the_released_sizes():
    config = json.loads(json.dumps(runtime_configs.mlx_config(schema.ModelConfig())))
    backbone = config["transformer"]
    assert backbone["dim_feedforward"] == 4 * 4096
    assert config["depformer"]["transformer"]["dim_feedforward"] == 4 * 1024
    assert config["audio_delays"] == ([0] + [1] * 7) * 2
    assert (config["text_in_vocab_size"], config["audio_vocab_size"]) == (32001, 2049)
    encoder = runtime_configs.encoder_config(schema.SiglipConfig())
    assert encoder["projection_dim"] == 2304
