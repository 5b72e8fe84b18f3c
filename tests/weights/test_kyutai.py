"""Kyutai layouts: names, round trips, variants, errors, and the public `moshi` package."""

import dataclasses
import json

import as_written
import ml_dtypes
import numpy as np
import pytest
import toy

from mvjax import gates, tree
from mvjax.config import schema
from mvjax.export import weight_files
from mvjax.weights import kyutai, rules, safetensors_io, split_names

TOY = toy.EXPORTED_17
DESIGNS = {
    "conditional": schema.CrossAttentionConfig(gate=gates.Conditional(hidden=3)),
    "constant": schema.CrossAttentionConfig(gate=gates.Constant()),
    "none": schema.CrossAttentionConfig(gate=None),
    "shared_gate": schema.CrossAttentionConfig(gate=gates.Conditional(3), share_gate=True),
    "shared_constant": schema.CrossAttentionConfig(gate=gates.Constant(), share_gate=True),
    "kv": schema.CrossAttentionConfig(gate=gates.Conditional(3), share="kv"),
    "unshared": schema.CrossAttentionConfig(
        gate=gates.Conditional(3), share="none", share_gate=True
    ),
    "other_width": schema.CrossAttentionConfig(gate=gates.Conditional(3), dim=14),
    "encoder_width": schema.CrossAttentionConfig(gate=gates.Conditional(3), dim=20),
    "two_layers": schema.CrossAttentionConfig(
        gate=gates.Conditional(3), share="none", dim=14, layers=(0, 2)
    ),
    "last_layer": schema.CrossAttentionConfig(
        gate=gates.Conditional(3), share_gate=True, layers=(2,)
    ),
    "two_layers_kv": schema.CrossAttentionConfig(
        gate=gates.Constant(), share="kv", dim=14, layers=(1, 2)
    ),
    "bias": schema.CrossAttentionConfig(gate=gates.Conditional(3, bias=True)),
}


def random_params(config, table):
    rng = np.random.default_rng(0)
    shapes = rules.leaf_shapes(table, kyutai.sizes(config))
    return tree.unflatten({p: rng.standard_normal(s).astype("f") for p, s in shapes.items()})


def assert_equal(a, b):
    a, b = tree.flatten(a), tree.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def design(name):
    return dataclasses.replace(TOY, cross_attention=DESIGNS[name])


def test_the_released_sizes_give_the_released_names_and_counts():
    config = schema.ModelConfig()
    vis = rules.tensor_shapes(kyutai.vis_rules(config), kyutai.sizes(config))
    base = rules.tensor_shapes(kyutai.moshi_rules(config), kyutai.sizes(config))
    count = {n: int(np.prod(s)) for n, s in vis.items()}
    assert (len(vis), sum(count.values())) == (893, 8_307_240_688)
    assert (len(base), sum(int(np.prod(s)) for s in base.values())) == (355, 7_687_729_152)
    adapters = [
        n for n in vis if "cross" in n or (n.startswith("image_prefix.") and ".enc." not in n)
    ]
    assert (len(adapters), sum(count[n] for n in adapters)) == (101, 206_184_448)
    encoder = [n for n in vis if n.startswith("image_prefix.enc.")]
    assert (len(encoder), sum(count[n] for n in encoder)) == (437, 413_327_088)
    for name, shape in {
        "llm.text_emb.weight": (32001, 4096),
        "llm.transformer.layers.31.gating.linear_in.weight": (22528, 4096),
        "llm.transformer.layers.0.cross_attention.mha.in_proj_weight": (12288, 4096),
        "llm.transformer.layers.7.cross_attention.gate.alpha.0.weight": (512, 4096),
        "llm.transformer.layers.7.norm_cross.alpha": (1, 1, 4096),
        "audio_emb.15.weight": (2049, 4096),
        "depformer_emb.6.weight": (2049, 1024),
        "depformer.layers.5.self_attn.in_proj_weight": (24576, 1024),
        "depformer.layers.5.self_attn.out_proj.weight": (8192, 1024),
        "depformer.layers.0.gating.7.linear_out.weight": (1024, 2816),
        "audio_linears.7.weight": (2048, 1024),
        "image_prefix.norm_xa.alpha": (1, 1, 4096),
        "image_prefix.enc.model.embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "image_prefix.enc.model.encoder.layers.26.self_attn.q_proj.bias": (1152,),
        "image_prefix.enc.model.post_layernorm.bias": (1152,),
    }.items():
        assert vis[name] == shape, name


@pytest.mark.parametrize("name", DESIGNS)
def test_vis_round_trip_of_every_design(name, tmp_path):
    config = design(name)
    params = random_params(config, kyutai.vis_rules(config))
    weight_files.save_exported(tmp_path / "m.safetensors", params, config, "torch")
    assert_equal(
        weight_files.load_exported(tmp_path / "m.safetensors", config, "torch", dtype=np.float32),
        params,
    )


def test_variant_names():
    def names(which):
        config = design(which)
        return rules.tensor_shapes(kyutai.vis_rules(config), kyutai.sizes(config))

    parent = "llm.transformer.layers.2.cross_attention."
    assert names("constant")[f"{parent}gate.alpha"] == (1, 1, 1)
    assert names("shared_gate")[f"{parent}per_layer_alpha"] == (1, 1, 1)
    assert names("shared_gate")[f"{parent}gate.alpha.2.weight"] == (24, 3)
    assert f"{parent}per_layer_alpha" not in names("unshared")
    assert names("unshared")[f"{parent}mha.in_proj_weight"] == (72, 24)
    assert names("kv")[f"{parent}mha.in_proj_weight_q"] == (24, 24)
    assert f"{parent}mha.in_proj_weight_kv" not in names("kv")
    assert not any(".gate." in n for n in names("none"))
    assert names("bias")[f"{parent}gate.alpha.2.bias"] == (24,)


def test_names_where_image_tokens_have_another_width():
    """Reference 2.6, "Split case": keys first, then values, of as many inputs as tokens are wide."""
    parent, inputs = "llm.transformer.layers.0.cross_attention.mha.", {}
    for name, width in (("conditional", 24), ("other_width", 14), ("encoder_width", 20)):
        config = design(name)
        table = rules.tensor_shapes(kyutai.vis_rules(config), kyutai.sizes(config))
        split = width != 24
        assert (f"{parent}in_proj_weight" in table) == (not split)
        if split:
            assert table[f"{parent}in_proj_weight_q"] == (24, 24)
            assert table[f"{parent}in_proj_weight_kv"] == (48, width)
        assert table[f"{parent}out_proj.weight"] == (24, 24)
        assert table["image_prefix.norm_xa.alpha"] == (1, 1, width)
        assert table.get("image_prefix.proj_xa.weight", (width, 20)) == (width, 20)
        inputs[name] = "image_prefix.proj_xa.weight" in table
    assert inputs == {"conditional": True, "other_width": True, "encoder_width": False}
    config = design("other_width")
    params = random_params(config, kyutai.vis_rules(config))
    table = kyutai.vis_rules(config)
    written = as_written.tensors(tree.flatten(params), table, kyutai.sizes(config))
    keys_values = written[f"{parent}in_proj_weight_kv"]
    k, v = (params["xa"][n]["kernel"].reshape(14, 24).T for n in ("k", "v"))
    np.testing.assert_array_equal(keys_values, np.concatenate([k, v]))


def test_layers_that_do_not_look_have_no_tensors():
    for name, looking in {
        "two_layers": (0, 2),
        "last_layer": (2,),
        "two_layers_kv": (1, 2),
    }.items():
        config = design(name)
        table = rules.tensor_shapes(kyutai.vis_rules(config), kyutai.sizes(config))
        parts = {n: set() for n in ("norm_cross", "gate.alpha")}
        for tensor in table:
            for part, layers in parts.items():
                if f".{part}" in tensor:
                    layers.add(int(tensor.split(".")[3]))
        assert parts == {"norm_cross": set(looking), "gate.alpha": set(looking)}
        assert f"llm.transformer.layers.{looking[0]}.cross_attention.mha.out_proj.weight" in table


def test_moshi_round_trip_from_the_whole_tree(tmp_path):
    params = random_params(TOY, kyutai.vis_rules(TOY))
    base, vis = tmp_path / "base.safetensors", tmp_path / "vis.safetensors"
    kyutai.save_moshi(base, params, TOY)
    weight_files.save_exported(vis, params, TOY, "torch")
    moshi = tree.flatten(kyutai.load_moshi(base, TOY))
    whole = tree.flatten(params)
    assert set(moshi) < set(whole)
    assert_equal(moshi, {path: whole[path] for path in moshi})
    renamed, own = safetensors_io.read(vis), safetensors_io.read(base)
    np.testing.assert_array_equal(renamed["llm.out_norm.alpha"], own["out_norm.alpha"])
    np.testing.assert_array_equal(renamed["audio_emb.9.weight"], own["emb.9.weight"])
    np.testing.assert_array_equal(renamed["depformer_in.3.weight"], own["depformer_in.3.weight"])


def test_bfloat16_files(tmp_path):
    params = random_params(TOY, kyutai.moshi_rules(TOY))
    path = tmp_path / "m.safetensors"
    kyutai.save_moshi(path, params, TOY, dtype=ml_dtypes.bfloat16)
    loaded = tree.flatten(kyutai.load_moshi(path, TOY))
    for p, leaf in tree.flatten(params).items():
        assert loaded[p].dtype == np.float32
        np.testing.assert_array_equal(loaded[p], leaf.astype(ml_dtypes.bfloat16).astype("f"))
    kept = tree.flatten(kyutai.load_moshi(path, TOY, dtype=None))
    assert {leaf.dtype for leaf in kept.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_split_projection_names_are_accepted(tmp_path):
    params = random_params(TOY, kyutai.moshi_rules(TOY))
    path = tmp_path / "m.safetensors"
    kyutai.save_moshi(path, params, TOY)
    tensors = {}
    for name, tensor in safetensors_io.read(path).items():
        steps = TOY.codebooks_out if name.startswith("depformer.") else 1
        if name.endswith(("in_proj_weight", "out_proj.weight")):
            parent, side = name.rsplit("self_attn.", 1)
            side = side.split("_")[0]
            for s, part in enumerate(np.split(tensor, steps)):
                tensors[f"{parent}self_attn.{side}_projs.{s}.weight"] = part
        else:
            tensors[name] = tensor
    safetensors_io.write(path, tensors)
    assert_equal(kyutai.load_moshi(path, TOY), params)


def test_errors_name_file_and_tensor(tmp_path):
    path = tmp_path / "m.safetensors"
    kyutai.save_moshi(path, random_params(TOY, kyutai.moshi_rules(TOY)), TOY)
    tensors = safetensors_io.read(path)
    tensors["text_embedding.weight"] = tensors.pop("text_emb.weight")
    tensors["emb.3.weight"] = tensors["emb.3.weight"][:-1]
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match=r"m\.safetensors: 3 of \d+ tensors") as error:
        kyutai.load_moshi(path, TOY)
    assert "emb.3.weight: expected [14, 24], got [13, 24]" in str(error.value)
    assert "text_emb.weight: missing" in str(error.value)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"m\.safetensors.*cut off"):
        kyutai.load_moshi(path, TOY)


@pytest.mark.parity
def test_the_public_moshi_package_loads_a_base_file(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_TORCH_COMPILE", "1")
    torch = pytest.importorskip("torch")
    lm = pytest.importorskip("moshi.models.lm")
    params = random_params(TOY, kyutai.moshi_rules(TOY))
    kyutai.save_moshi(tmp_path / "m.safetensors", params, TOY)
    model = lm.LMModel(
        delays=list(TOY.delays),
        n_q=TOY.codebooks - 1,
        dep_q=TOY.codebooks_out,
        card=TOY.audio_vocab,
        text_card=TOY.text_vocab,
        dim=24,
        num_heads=2,
        num_layers=3,
        hidden_scale=4.125,
        norm="rms_norm_f32",
        gating="silu",
        causal=True,
        context=10,
        positional_embedding="rope",
        existing_text_padding_id=TOY.text_pad,
        depformer_dim=16,
        depformer_num_heads=4,
        depformer_num_layers=2,
        depformer_dim_feedforward=int(4.125 * 16),
        depformer_multi_linear=True,
        depformer_weights_per_step=True,
        depformer_pos_emb="none",
        depformer_context=TOY.codebooks_out,
        depformer_gating="silu",
    )
    tensors = safetensors_io.read(tmp_path / "m.safetensors")
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=True)
    out = model.transformer.layers[1].self_attn.out_projs[0].weight
    want = params["backbone"]["blocks"]["attn"]["out"]["kernel"][1].reshape(24, 24).T
    np.testing.assert_array_equal(out.detach().numpy(), want)


def test_the_mixed_dtypes_of_the_released_vis_file_are_kept_on_request(tmp_path):
    """The release holds the image encoder in float32, the rest in bfloat16."""
    params = random_params(TOY, kyutai.vis_rules(TOY))
    path = tmp_path / "m.safetensors"
    flat = tree.flatten(params)
    mixed = {
        p: leaf if p.startswith("image/encoder/") else leaf.astype(ml_dtypes.bfloat16)
        for p, leaf in flat.items()
    }
    weight_files.save_exported(path, tree.unflatten(mixed), TOY, "torch")
    kept = tree.flatten(weight_files.load_exported(path, TOY, "torch"))
    assert {p: leaf.dtype for p, leaf in kept.items()} == {p: x.dtype for p, x in mixed.items()}
    assert_equal(kept, mixed)
    exact = tree.flatten(weight_files.load_exported(path, TOY, "torch", dtype=np.float32))
    assert {leaf.dtype for leaf in exact.values()} == {np.dtype(np.float32)}
    assert_equal(exact, {p: x.astype(np.float32) for p, x in mixed.items()})


def test_a_base_in_several_files(tmp_path):
    params = random_params(TOY, kyutai.moshi_rules(TOY))
    kyutai.save_moshi(tmp_path / "whole.safetensors", params, TOY)
    tensors = safetensors_io.read(tmp_path / "whole.safetensors")
    where = {}
    for k in range(3):
        part = {name: tensors[name] for name in sorted(tensors)[k::3]}
        safetensors_io.write(tmp_path / f"model-{k}.safetensors", part)
        where |= dict.fromkeys(part, f"model-{k}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_equal(kyutai.load_moshi(tmp_path, TOY), params)


def test_projections_under_other_names_must_be_complete_and_unique():
    def given(*names):
        return {f"l.self_attn.{name}": np.zeros((4, 3), np.float32) for name in names}

    fused = split_names.fused(given("in_proj.weight", "out_projs.0.weight"), place="f")
    assert fused.keys() == {"l.self_attn.in_proj_weight", "l.self_attn.out_proj.weight"}
    twice = given("in_proj_weight", "in_proj.weight", "out_projs.2.weight", "out_projs.0.weight")
    with pytest.raises(ValueError, match="f: 2 tensors") as error:
        split_names.fused(twice, place="f")
    assert "in_proj_weight: found twice, also as l.self_attn.in_proj.weight" in str(error.value)
    assert "l.self_attn.out_projs.1.weight: missing" in str(error.value)
    with pytest.raises(ValueError, match=r"out_proj\.weight: found twice, also as .*out_projs\.0"):
        split_names.fused(given("out_proj.weight", "out_projs.0.weight"), place="f")
