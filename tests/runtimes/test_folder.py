"""Export folders as the runtimes read them: configs, candle's names, quantized files, damage."""

import dataclasses
import json
import re

import exported
import numpy as np
import pytest
import toy

from mvjax import gates
from mvjax.export import targets, weight_files
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import loading
from mvjax.weights import file_names, safetensors_io

TOY = exported.TOY
FRAMES = 12
READ = {
    "torch": folder_lib.read_torch,
    "mlx": folder_lib.read_mlx,
    "candle": folder_lib.read_candle,
}


def assert_same(outs, others, atol=0.0):
    assert [out.text_token for out in outs] == [out.text_token for out in others]
    np.testing.assert_array_equal(
        [out.audio_tokens for out in outs], [out.audio_tokens for out in others]
    )
    for field in ("text_logits", "audio_logits", "gates", "hidden"):
        a, b = (exported.stacked(side, field) for side in (outs, others))
        np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=field)


def assert_same_weights(one, two):
    assert one.weights.keys() == two.weights.keys()
    for name, tensor in one.weights.items():
        np.testing.assert_array_equal(tensor, two.weights[name], err_msg=name)


@pytest.mark.parametrize(
    "gate",
    [
        None,
        gates.Constant(),
        gates.Constant("sigmoid"),
        gates.Conditional(3, "tanh"),
        gates.Conditional(3),
    ],
)
def test_candle_folders_run_as_torch_folders(gate, tmp_path):
    config = exported.with_adapters(gate=gate)
    _, folder = exported.write(config, "torch", tmp_path)
    _, other = exported.write(config, "candle", tmp_path)
    one, two = (exported.open_model(place) for place in (folder, other))
    assert_same_weights(one, two)
    assert_same(exported.talk(one, FRAMES), exported.talk(two, FRAMES), atol=1e-4)


def test_a_gguf_runs_as_its_dequantized_weights(tmp_path):
    pytest.importorskip("gguf")
    params = toy.quantizable_params()
    _, folder = exported.write(
        toy.QUANTIZABLE, "candle", tmp_path, params=params, quantization="q8_0"
    )
    weights = folder / "model.q8_0.gguf"
    loaded = weight_files.load_exported(weights, toy.QUANTIZABLE, "candle", dtype=np.float32)
    _, other = exported.write(toy.QUANTIZABLE, "torch", tmp_path, params=loaded)
    first, again = (exported.talk(exported.open_model(folder), 6) for _ in range(2))
    assert_same(first, again)
    assert_same_weights(exported.open_model(folder), exported.open_model(other))
    assert_same(first, exported.talk(exported.open_model(other), 6), atol=1e-4)
    (folder / "model_vision_tower_unquant.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model_vision_tower_unquant"):
        exported.open_model(folder)


@pytest.mark.parametrize("mode", ["q8", "q4"])
def test_quantized_mlx_dequantized_and_natively(mode, tmp_path):
    pytest.importorskip("mlx.core")
    from mvjax.runtimes.mlx import model as mlx_model

    params, config = toy.quantizable_params(), toy.QUANTIZABLE
    _, folder = exported.write(config, "mlx", tmp_path, params=params, quantization=mode)
    first, again = (exported.talk(exported.open_model(folder), 5) for _ in range(2))
    assert_same(first, again)
    native = mlx_model.MlxModel(folder, dtype="float32", quantized=True)
    assert native.dtype == f"float32, {mode} weights"
    assert "text_linear.scales" in native.weights
    assert "img_embedder.model.encoder.layers.0.mlp.fc1.scales" not in native.weights
    assert_same(first, exported.talk(native, 5), atol=1e-3)
    # as a GPU serves it, the first frame from the same past
    served = mlx_model.MlxModel(folder, dtype="bfloat16", quantized=True)
    assert served.dtype == f"bfloat16, {mode} weights"
    (one,), other = exported.talk(served, 1), first[0]
    for name in ("text_logits", "hidden"):
        a, b = getattr(one.probes, name), getattr(other.probes, name)
        assert 0 < np.abs(a - b).max() < 0.04 * np.abs(b).max(), name


def test_mlx_reads_as_much_of_the_cache_as_is_filled(tmp_path, monkeypatch):
    pytest.importorskip("mlx.core")
    from mvjax.runtimes.mlx import engine

    _, folder = exported.write(TOY, "mlx", tmp_path)
    plain = exported.talk(exported.open_model(folder), FRAMES)
    monkeypatch.setattr(engine, "BUCKET", 2)
    assert_same(plain, exported.talk(exported.open_model(folder), FRAMES), atol=1e-5)


@pytest.mark.slow  # a C++ compiler for each kernel; on a GPU it is what runs
def test_the_compiled_step_of_mlx(tmp_path):
    pytest.importorskip("mlx.core")
    from mvjax.runtimes.mlx import model as mlx_model

    _, folder = exported.write(TOY, "mlx", tmp_path)
    plain = exported.talk(exported.open_model(folder), FRAMES)
    compiled = mlx_model.MlxModel(folder, compiled=True)
    assert_same(plain, exported.talk(compiled, FRAMES), atol=1e-5)


def test_a_quantized_file_that_is_not_what_its_config_says(tmp_path):
    pytest.importorskip("mlx.core")
    params, config = toy.quantizable_params(), toy.QUANTIZABLE
    _, folder = exported.write(config, "mlx", tmp_path, params=params, quantization="q4")
    path = folder / "config.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"quantization": {"bits": 8, "group_size": 32}}))
    with pytest.raises(ValueError, match=r"model\.q4\.safetensors: not as its config says"):
        exported.open_model(folder)
    path.write_text(text)
    tensors = safetensors_io.read(folder / "model.q4.safetensors")
    del tensors["depformer.slices.1.linear_in.scales"]
    safetensors_io.write(folder / "model.q4.safetensors", tensors)
    with pytest.raises(ValueError, match=r"depformer\.slices\.1\.linear_in\.scales"):
        exported.open_model(folder)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_folders_and_images_that_do_not_fit(target, tmp_path):
    _, folder = exported.write(TOY, target, tmp_path)
    model = exported.open_model(folder)
    with pytest.raises(ValueError, match=r"expected \[1, 12, 12, 3\], got \[1, 8, 12, 3\]"):
        model.encode_image(np.zeros((1, 8, 12, 3), np.float32))
    path = folder / file_names.config(target, quantized=False)
    text = path.read_text()
    path.write_text(text.replace("num_layers", "n_layers"))
    with pytest.raises(ValueError, match=f"{path.name}: key 'num_layers' is missing"):
        READ[target](folder)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name}: missing, so .* is not an export"):
        READ[target](folder)


@pytest.mark.parametrize("target", targets.TARGETS)
@pytest.mark.parametrize("context_has_self", [True, False])
def test_the_config_of_a_folder_says_what_the_model_config_says(target, context_has_self, tmp_path):
    config = TOY
    backbone = dataclasses.replace(config.backbone, context_has_self=context_has_self)
    config = dataclasses.replace(config, backbone=backbone)
    _, folder = exported.write(config, target, tmp_path)
    found = READ[target](folder)
    assert (found.layers, found.heads, found.context) == (3, 2, config.backbone.window)
    assert found.delays == config.delays
    assert (found.codebooks_out, found.text_vocab, found.audio_vocab) == (3, 37, 13)
    assert found.depth_norm == ("mean_square", 1e-8)
    assert found.image_norm == ("variance", 1e-5)
    assert (found.gate, found.activation) == ("conditional", "sigmoid")
    assert (found.encoder.layers, found.encoder.heads, found.encoder.patch) == (2, 5, 4)
    assert (found.scope.start, found.scope.frames) == (0, None)


def test_torch_folders_say_which_norm_the_depth_transformer_has(tmp_path):
    depformer = dataclasses.replace(TOY.depformer, norm="variance")
    _, folder = exported.write(dataclasses.replace(TOY, depformer=depformer), "torch", tmp_path)
    assert folder_lib.read_torch(folder).depth_norm == ("variance", 1e-8)


def test_an_unknown_gating_of_candle_is_named(tmp_path):
    _, folder = exported.write(TOY, "candle", tmp_path)
    path = folder / "config-moshika-vis.json"
    path.write_text(path.read_text().replace("GatedSigmoid", "GatedSoftplus"))
    with pytest.raises(ValueError, match="got 'ConditionalGatedSoftplus'"):
        folder_lib.read_candle(folder)


def test_a_folder_of_two_exports_is_refused(tmp_path):
    _, folder = exported.write(TOY, "mlx", tmp_path)
    (folder / file_names.TORCH_CONFIG).touch()
    assert folder_lib.is_export(folder)
    with pytest.raises(ValueError, match="found the config files of torch and mlx; export again"):
        loading.open_folder(folder)


@pytest.mark.parametrize("target", ["torch", "mlx"])
def test_damaged_files_are_named(target, tmp_path):
    pytest.importorskip(target)
    _, folder = exported.write(TOY, target, tmp_path)
    weights = folder_lib.read(folder).weights
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"{re.escape(str(weights))}.*not a readable"):
        loading.open_folder(folder)
    config = folder / {"torch": "moshika-vis.yaml", "mlx": "config.json"}[target]
    config.write_text("dim: [")
    with pytest.raises(
        ValueError, match=f"{re.escape(str(config))}: not (YAML|JSON): .*; export again"
    ):
        loading.open_folder(folder)
