"""The layouts of kyuteye_rs: names, round trips, relation to the PyTorch layout, refusals."""

import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest
import toy

from mvjax import gates, tree
from mvjax.config import schema
from mvjax.export import weight_files
from mvjax.weights import candle, file_names, kyutai, rules, safetensors_io

CONFIG = toy.QUANTIZABLE
XA = "transformer.layers.0.cross_attention."


def narrow(**changes):
    widths = {
        "backbone": schema.BackboneConfig(width=24, layers=3, heads=2, hidden=66, context=10),
        "depformer": schema.DepformerConfig(width=16, layers=2, heads=4, hidden=44),
        "siglip": schema.SiglipConfig(
            width=20, layers=2, heads=5, hidden=28, patch=4, image_size=12
        ),
    }
    adapters = schema.CrossAttentionConfig(**({"gate": gates.Conditional(hidden=3)} | changes))
    return dataclasses.replace(CONFIG, cross_attention=adapters, **widths)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """(parameters, path of the GGUF)."""
    pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("candle") / "model.q8_0.gguf"
    params = toy.quantizable_params()
    weight_files.save_exported(path, params, CONFIG, "candle", quantization="q8_0")
    return params, path


def load(path, config=CONFIG):
    return weight_files.load_exported(path, config, "candle", dtype=np.float32)


def test_the_same_tree_in_both_layouts(tmp_path):
    config = narrow()
    params = toy.quantizable_params(config)
    weight_files.save_exported(tmp_path / "pt.safetensors", params, config, "torch")
    weight_files.save_exported(tmp_path / "rs.safetensors", params, config, "candle")
    a = safetensors_io.read(tmp_path / "pt.safetensors")
    b = safetensors_io.read(tmp_path / "rs.safetensors")
    layer, step1 = "transformer.layers.1.", "depformer.1.transformer.layers.0."
    depth_in = np.split(a["depformer.layers.0.self_attn.in_proj_weight"], 3)
    depth_out = np.split(a["depformer.layers.0.self_attn.out_proj.weight"], 3)
    # reference section 4.6, row by row
    for name, want in {
        "text_emb.weight": a["llm.text_emb.weight"],
        "text_linear.weight": a["llm.text_linear.weight"],
        "out_norm.alpha": a["llm.out_norm.alpha"],
        "emb.4.weight": a["audio_emb.4.weight"],
        f"{layer}self_attn.in_proj_weight": a[f"llm.{layer}self_attn.in_proj_weight"],
        f"{layer}gating.linear_out.weight": a[f"llm.{layer}gating.linear_out.weight"],
        f"{layer}norm_cross.alpha": a[f"llm.{layer}norm_cross.alpha"],
        f"{XA}in_proj_weight": a[f"llm.{XA}mha.in_proj_weight"],
        f"{XA}out_proj.weight": a[f"llm.{XA}mha.out_proj.weight"],
        f"{layer}cross_attention.gate.alpha.2.weight": a[
            f"llm.{layer}cross_attention.gate.alpha.2.weight"
        ],
        "depformer.1.linear_in.weight": a["depformer_in.1.weight"],
        "depformer.1.linear_out.weight": a["audio_linears.1.weight"],
        "depformer.0.emb.weight": a["depformer_text_emb.weight"],
        "depformer.2.emb.weight": a["depformer_emb.1.weight"],
        f"{step1}self_attn.in_proj_weight": depth_in[1],
        f"{step1}self_attn.out_proj.weight": depth_out[1],
        f"{step1}norm2.alpha": a["depformer.layers.0.norm2.alpha"],
        f"{step1}gating.linear_in.weight": a["depformer.layers.0.gating.1.linear_in.weight"],
        "image_prefix.norm_xa.alpha": a["image_prefix.norm_xa.alpha"],
        "image_prefix.enc.model.embeddings.patch_embedding.weight": a[
            "image_prefix.enc.model.embeddings.patch_embedding.weight"
        ],
    }.items():
        np.testing.assert_array_equal(b[name], want, err_msg=name)
    assert b[f"{step1}norm1.alpha"].shape == (1, 1, 16)
    assert not any(re.match(r"llm\.|.*\.mha\.|depformer_|audio_", name) for name in b)


@pytest.mark.parametrize(
    "gate",
    [
        gates.Conditional(3),
        gates.Conditional(3, "tanh"),
        gates.Constant(),
        gates.Constant("sigmoid"),
        gates.Conditional(3, "tanh", bias=True),
        gates.Conditional(3, bias=True),
        None,
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dim", [None, 14, 20])
def test_import_then_export_gives_the_same_bytes(gate, dim, dtype, tmp_path):
    config = narrow(gate=gate, dim=dim)
    first, again = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    weight_files.save_exported(first, toy.quantizable_params(config), config, "candle", dtype=dtype)
    loaded = weight_files.load_exported(first, config, "candle")
    assert {leaf.dtype for leaf in tree.flatten(loaded).values()} == {np.dtype(dtype)}
    weight_files.save_exported(again, loaded, config, "candle")
    assert first.read_bytes() == again.read_bytes()


def test_gguf_and_its_vision_file_keep_their_bytes_too(quantized, tmp_path):
    _, path = quantized
    again = tmp_path / "again.q8_0.gguf"
    weight_files.save_exported(again, load(path), CONFIG, "candle", quantization="q8_0")
    assert again.read_bytes() == path.read_bytes()
    # the name that kyuteye_rs derives: X.q8_0.gguf -> X_vision_tower_unquant.safetensors
    vision = path.with_name("model_vision_tower_unquant.safetensors")
    assert file_names.vision_file(path) == vision
    assert file_names.vision_file(again).read_bytes() == vision.read_bytes()


def test_what_a_gguf_holds(quantized):
    params, path = quantized
    import gguf

    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    tensors = weight_files.to_tensors(params, CONFIG, "candle", quantization="q8_0")
    plain = {name: t for name, t in tensors.items() if not name.startswith(candle.IMAGE)}
    assert kinds.keys() == plain.keys()
    vision = safetensors_io.tensors(file_names.vision_file(path))
    assert {*vision, *plain} == {*tensors}
    assert {t.dtype for t in vision.values()} == {np.dtype(ml_dtypes.bfloat16)}
    for name, tensor in plain.items():
        matrix = len(tensor.shape) == 2 and tensor.shape[1] % 32 == 0
        assert kinds[name] == ("Q8_0" if matrix else "F32"), name
    assert f"{XA}in_proj_weight" not in kinds  # a fused one is refused by kyuteye_rs
    assert plain[f"{XA}in_proj_weight_q"].shape == (512, 512)
    assert plain[f"{XA}in_proj_weight_kv"].shape == (1024, 512)
    loaded = tree.flatten(load(path))
    for our_path, leaf in tree.flatten(params).items():
        if our_path.startswith("image/"):  # from the vision file
            np.testing.assert_array_equal(loaded[our_path], leaf.astype(ml_dtypes.bfloat16))
        elif our_path.endswith("scale"):
            np.testing.assert_array_equal(loaded[our_path], leaf)
        else:
            assert 0 < np.abs(loaded[our_path] - leaf).max() < np.abs(leaf).max() / 200, our_path


def test_a_gguf_may_hold_the_image_part_itself(quantized, tmp_path):
    params, path = quantized
    gguf_io, alone = candle.gguf_io(), tmp_path / "alone.q8_0.gguf"
    tensors = weight_files.to_tensors(params, CONFIG, "candle", quantization="q8_0")
    gguf_io.write(alone, tensors)  # as the released one does, by its size
    loaded = load(alone)["image"]["proj"]
    np.testing.assert_array_equal(loaded["bias"], params["image"]["proj"]["bias"])
    assert np.abs(loaded["kernel"] - params["image"]["proj"]["kernel"]).max() > 1e-5
    vision = file_names.vision_file(alone)
    vision.write_bytes(file_names.vision_file(path).read_bytes())
    loaded = tree.flatten(load(alone))
    for name, leaf in tree.flatten(load(path)).items():
        np.testing.assert_array_equal(loaded[name], leaf, err_msg=name)
    vision.unlink()
    alone.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"no image_prefix.*alone_vision_tower_unquant"):
        load(alone)


@pytest.mark.parametrize("location", ["hf://o/n@v1/model.q8_0.gguf", "hf://o/n@v1"])
def test_the_vision_file_of_a_gguf_on_the_hub_is_fetched_too(location, quantized, monkeypatch):
    _, path = quantized
    vision = "model_vision_tower_unquant.safetensors"
    there = {location: path, f"hf://o/n@v1/{vision}": path.with_name(vision)}
    monkeypatch.setattr(candle.files, "resolve", lambda text, names=(): there[str(text)])
    loaded = tree.flatten(load(location))
    monkeypatch.undo()
    for name, leaf in tree.flatten(load(path)).items():
        np.testing.assert_array_equal(loaded[name], leaf)


def test_damage_is_named(quantized, tmp_path):
    gguf_io = candle.gguf_io()
    tensors = weight_files.to_tensors(quantized[0], CONFIG, "candle", quantization="q8_0")
    name = "depformer.2.transformer.layers.1.norm1.alpha"
    tensors[name] = tensors[name][()] + 1
    gguf_io.write(tmp_path / "m.q8_0.gguf", tensors)
    with pytest.raises(ValueError, match=f"m.q8_0.gguf.*\n  {re.escape(name)}: expected a copy"):
        load(tmp_path / "m.q8_0.gguf")
    del tensors[name], tensors["text_emb.weight"]
    tensors["nobody"] = np.zeros(3, np.float32)
    gguf_io.write(tmp_path / "m.q8_0.gguf", tensors)
    with pytest.raises(ValueError, match="3 of") as error:
        load(tmp_path / "m.q8_0.gguf")
    for problem in (f"{name}: missing", "text_emb.weight: missing", "nobody: unexpected"):
        assert problem in str(error.value)


def test_a_safetensors_file_may_have_separate_projections(tmp_path):
    config = narrow()
    params = toy.quantizable_params(config)
    tensors = weight_files.to_tensors(params, config, "candle", quantization="q8_0")
    safetensors_io.write(tmp_path / "m.safetensors", tensors)
    loaded = tree.flatten(load(tmp_path / "m.safetensors", config))
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(loaded[path], leaf)


def test_names_of_other_image_tokens_and_of_a_learned_bias():
    """Reference 2.6; kyuteye_rs looks for the split names where `in_proj_weight` is absent."""
    config = narrow(dim=20, gate=gates.Conditional(3, bias=True))
    for split in (False, True):
        shapes = rules.tensor_shapes(candle.candle_rules(config, split=split), kyutai.sizes(config))
        assert f"{XA}in_proj_weight" not in shapes
        assert shapes[f"{XA}in_proj_weight_q"] == (24, 24)
        assert shapes[f"{XA}in_proj_weight_kv"] == (48, 20)
        assert shapes["image_prefix.norm_xa.alpha"] == (1, 1, 20)
        assert "image_prefix.proj_xa.weight" not in shapes
        assert shapes["transformer.layers.2.cross_attention.gate.alpha.2.bias"] == (24,)


def test_released_sizes_count_every_parameter():
    config = schema.ModelConfig()
    copied = 7 * 6 * 2 * 1024  # norms of the depth transformer
    for split in (False, True):
        table = candle.candle_rules(config, split=split)
        shapes = rules.tensor_shapes(table, kyutai.sizes(config))
        assert sum(int(np.prod(s)) for s in shapes.values()) == 8_307_240_688 + copied
    image = sum(int(np.prod(s)) for n, s in shapes.items() if n.startswith(candle.IMAGE))
    assert 2 * image == 836_107_744  # bytes; 836 MB are listed (reference section 4.2)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"gate": gates.Conditional(5)}, "Conditional(hidden=5"),
        ({"share_gate": True}, "share_gate=True"),
        ({"share": "kv"}, "share='kv'"),
        ({"share": "none"}, "share='none'"),
        ({"layers": (0, 2)}, "layers=(0, 2)"),
    ],
)
def test_designs_without_a_place_are_refused_by_name(changes, name):
    with pytest.raises(ValueError, match=re.escape(name)):
        weight_files.to_tensors({}, narrow(**changes), "candle")
