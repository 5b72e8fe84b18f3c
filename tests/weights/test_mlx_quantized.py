"""Quantized files of kyuteye_mlx: what they hold, how they are read."""

import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest
import toy

from mvjax import gates, tree
from mvjax.config import schema
from mvjax.export import weight_files
from mvjax.weights import file_names, kyutai, mlx, quantize, rules, safetensors_io

CONFIG = toy.QUANTIZABLE
MODES = pytest.mark.parametrize("mode", ["q8", "q4"])
XA = "transformer.layers.{}.cross_attention.mha."


@pytest.fixture(scope="module")
def params():
    return toy.quantizable_params()


@pytest.fixture(scope="module")
def written(params, tmp_path_factory):
    """{mode: path} of files, also the bfloat16 one under None."""
    folder = tmp_path_factory.mktemp("mlx")
    paths = {mode: folder / f"model.{mode}.safetensors" for mode in ("q8", "q4")}
    for mode, path in paths.items():
        weight_files.save_exported(path, params, CONFIG, "mlx", quantization=mode)
    paths[None] = folder / "model.safetensors"
    weight_files.save_exported(paths[None], params, CONFIG, "mlx", dtype="bfloat16")
    return paths


@MODES
def test_every_matrix_but_the_encoders_is_quantized(mode, written):
    plain, found = (safetensors_io.tensors(written[m]) for m in (None, mode))
    scheme = quantize.SCHEMES[mode]
    for name, tensor in plain.items():
        module = name.removesuffix(".weight")
        if len(tensor.shape) == 2 and not name.startswith("img_embedder."):
            rows, inputs = tensor.shape
            assert found[name].shape == (rows, inputs * scheme.bits // 32), name
            assert found[name].dtype == np.uint32
            for part in ("scales", "biases"):
                assert found[f"{module}.{part}"].shape == (rows, inputs // scheme.group)
                assert found[f"{module}.{part}"].dtype == ml_dtypes.bfloat16
        else:
            assert f"{module}.scales" not in found
            assert found[name].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(found[name][()], tensor[()])
    # reference section 4.2: later layers repeat all of the shared projections but kv_proj.weight
    more = {n.removeprefix(XA.format(1)) for n in found if n.startswith(XA.format(1))}
    parts = ("weight", "scales", "biases")
    assert more == {
        f"{module}.{part}" for module in ("q_proj", "kv_proj", "out_proj") for part in parts
    } - {"kv_proj.weight"}


@pytest.mark.parity
@MODES
def test_the_file_is_what_nn_quantize_makes_of_the_bfloat16_file(mode, written):
    mx = pytest.importorskip("mlx.core")
    from mlx import nn, utils

    from mvjax.runtimes.mlx import tensors as mlx_tensors

    plain = mx.load(str(written[None]))
    language = {n: t for n, t in plain.items() if not n.startswith("img_embedder.")}
    model = mlx_tensors.modules(_read(written), language, image_width=64)
    model.load_weights(list(mlx_tensors.repeated(language, CONFIG.backbone.layers).items()))
    scheme = quantize.SCHEMES[mode]
    nn.quantize(model, group_size=scheme.group, bits=scheme.bits)
    expected = dict(utils.tree_flatten(model.parameters()))
    del expected[f"{XA.format(1)}kv_proj.weight"]  # as upstream's `remove_shared_weights`
    expected |= {n: t for n, t in plain.items() if n.startswith("img_embedder.")}
    found = mx.load(str(written[mode]))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert mx.array_equal(found[name], tensor), name


def _read(written):
    """What the runtime reads in a folder with these weights."""
    import json

    from mvjax.export import runtime_configs
    from mvjax.runtimes import folder

    place = written[None].parent
    (place / "config.json").write_text(json.dumps(runtime_configs.mlx_config(CONFIG)))
    encoder = runtime_configs.encoder_config(CONFIG.siglip)
    (place / file_names.ENCODER_CONFIG).write_text(json.dumps(encoder))
    return folder.read_mlx(place)


def test_import_then_export_of_the_bfloat16_file_gives_the_same_bytes(written, tmp_path):
    loaded = weight_files.load_exported(written[None], CONFIG, "mlx")
    again = tmp_path / "again.safetensors"
    weight_files.save_exported(again, loaded, CONFIG, "mlx")
    assert again.read_bytes() == written[None].read_bytes()


@pytest.mark.parity
@MODES
@pytest.mark.parametrize("dtype", [None, np.float32])
def test_import_dequantizes_as_mlx(mode, dtype, written):
    mx = pytest.importorskip("mlx.core")
    scheme, found = quantize.SCHEMES[mode], mx.load(str(written[mode]))
    kept = mx.bfloat16 if dtype is None else mx.float32
    loaded = weight_files.load_exported(written[mode], CONFIG, "mlx", dtype=dtype)
    sample = {  # our path: (name, our value in the file's shape)
        "backbone/text_emb": ("text_emb", lambda x: x["embedding"]),
        "xa/q": (f"{XA.format(0)}q_proj", lambda x: x["kernel"].reshape(512, -1).T),
        "image/proj": ("transformer.image_prefix.proj_xa", lambda x: x["kernel"].T),
        "depformer/heads": ("depformer.slices.2.linear_out", lambda x: x["kernel"][2].T),
    }
    for path, (module, view) in sample.items():
        codes, *others = (found[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
        scales, biases = (part.astype(kept) for part in others)
        want = mx.dequantize(codes, scales, biases, group_size=scheme.group, bits=scheme.bits)
        node = loaded
        for key in path.split("/"):
            node = node[key]
        value = view(node)
        assert value.dtype == (ml_dtypes.bfloat16 if dtype is None else np.float32)
        np.testing.assert_array_equal(
            value.astype(np.float32), np.array(want.astype(mx.float32)), err_msg=path
        )


def test_other_group_sizes_are_understood(written, tmp_path):
    # upstream's quantize command has groups of 64 for both, if not told otherwise
    name, other = "text_linear", quantize.AffineScheme(bits=4, group=64)
    plain = safetensors_io.read(written[None])[f"{name}.weight"]
    tensors = safetensors_io.read(written["q4"])
    packed = quantize.quantize(plain, other)
    tensors |= {f"{name}.{part}": array for part, array in packed._asdict().items()}
    safetensors_io.write(tmp_path / "m.safetensors", tensors)
    loaded = weight_files.load_exported(tmp_path / "m.safetensors", CONFIG, "mlx", dtype=np.float32)
    want = quantize.dequantize(packed, other, dtype=np.float32)
    np.testing.assert_array_equal(loaded["backbone"]["text_head"]["kernel"].T, want)


@MODES
def test_damage_is_named(mode, written, tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = safetensors_io.read(written[mode])
    del tensors["text_emb.biases"], tensors["out_norm.weight"]
    tensors["text_linear.scales"] = tensors["text_linear.scales"][:, :1]
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match=r"text_emb\.biases: missing beside") as error:
        weight_files.load_exported(path, CONFIG, "mlx", dtype=np.float32)
    assert re.search(r"text_linear\.weight: expected \[37, 512\] quantized, got", str(error.value))
    tensors = safetensors_io.read(written[mode])
    del tensors["out_norm.weight"]
    tensors["nobody.scales"] = tensors["text_emb.scales"]
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match=r"out_norm\.weight: missing") as error:
        weight_files.load_exported(path, CONFIG, "mlx", dtype=np.float32)
    assert "nobody.scales: unexpected" in str(error.value)
    tensors = safetensors_io.read(written[mode])
    copy = f"{XA.format(1)}out_proj.weight"
    tensors[copy] = tensors[copy] ^ np.uint32(1)
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match=f"expected copies of layer 0's.*{re.escape(copy)}"):
        weight_files.load_exported(path, CONFIG, "mlx", dtype=np.float32)


def test_widths_that_do_not_fill_groups_are_all_named(params, tmp_path):
    config = dataclasses.replace(
        CONFIG,
        backbone=dataclasses.replace(CONFIG.backbone, width=256, hidden=100),
        cross_attention=dataclasses.replace(
            CONFIG.cross_attention, gate=gates.Conditional(hidden=32)
        ),
    )
    (refusal,) = mlx.width_refusals(config, "q8")  # its advice once
    assert refusal.startswith("backbone.hidden=100, cross_attention.gate.hidden=32: q8 needs mult")
    assert [p.split(":")[0] for p in mlx.width_refusals(config, "q4")] == ["backbone.hidden=100"]
    with pytest.raises(ValueError, match=r"cannot quantize to q4:.*\n.*backbone\.hidden=100"):
        weight_files.save_exported(
            tmp_path / "m", toy.quantizable_params(config), config, "mlx", quantization="q4"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "listed", "digits"), [("q8", 10.4, 1), ("q4", 6.54, 2)])
def test_released_files_have_the_size_that_these_rules_give(mode, listed, digits):
    config, scheme = schema.ModelConfig(), quantize.SCHEMES[mode]
    shapes = rules.tensor_shapes(mlx.mlx_rules(config), kyutai.sizes(config))
    size = 0  # bytes; reference section 4.2
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        if len(shape) != 2 or name.startswith("img_embedder."):
            size += 2 * count
            continue
        codes, others = count * scheme.bits // 8, 4 * count // scheme.group
        copies = 31 if XA.format(0) in name else 0
        size += codes + others + copies * (others + (0 if "kv_proj" in name else codes))
    assert round(size / 1e9, digits) == listed


def test_only_conditional_gates_have_a_width():
    ungated = dataclasses.replace(CONFIG.cross_attention, gate=None)
    config = dataclasses.replace(CONFIG, cross_attention=ungated)
    assert mlx.width_refusals(config, "q8") == []
    leaves = tree.flatten(toy.quantizable_params(config))
    assert not any("gate" in path for path in leaves)
