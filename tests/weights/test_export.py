"""Export folders, their refusals and certificates."""

import dataclasses
import json
import re

import ml_dtypes
import numpy as np
import pytest
import yaml

from mvjax import config as config_lib
from mvjax import tree
from mvjax.nn import gates
from mvjax.weights import (
    big_vision,
    certificate,
    export,
    kyutai,
    rules,
    safetensors_io,
    targets,
)

TOY = config_lib.ModelConfig(
    backbone=config_lib.BackboneConfig(width=24, layers=2, heads=2, hidden=66, context=40),
    depformer=config_lib.DepformerConfig(width=16, layers=2, heads=4, hidden=44),
    siglip=config_lib.SiglipConfig(width=20, layers=2, heads=5, hidden=28, patch=4, image_size=12),
    cross_attention=config_lib.CrossAttentionConfig(gate=gates.Conditional(hidden=3)),
    text_vocab=37,
    audio_vocab=13,
    codebooks_out=3,
    delays=(0, 0, 1, 1, 0, 1),
)
FRAMES = 104
FILES = {
    "README.md",
    "model.safetensors",
    "siglip448.config",
    "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer_spm_32k_3.model",
}


def random_params(config):
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in rules.leaf_shapes(kyutai.vis_rules(config), kyutai.sizes(config)).items():
        centre = 1.0 if path.endswith(("scale", "gate_alpha")) else 0.0
        flat[path] = (centre + 0.2 * rng.standard_normal(shape)).astype(np.float32)
    return tree.unflatten(flat)


def with_adapters(**changes):
    adapters = dataclasses.replace(TOY.cross_attention, **changes)
    return dataclasses.replace(TOY, cross_attention=adapters)


@pytest.fixture
def run(tmp_path):
    """(parameters, config) whose frozen files exist."""
    params = random_params(TOY)
    kyutai.save_moshi(tmp_path / "moshi.safetensors", params, TOY)
    big_vision.save_siglip(tmp_path / "siglip.npz", params["image"]["encoder"])
    (tmp_path / "mimi").write_bytes(b"mimi")
    (tmp_path / "spm").write_bytes(b"spm")
    names = ("moshi.safetensors", "siglip.npz", "mimi", "spm")
    files = config_lib.FrozenFiles(*(str(tmp_path / name) for name in names))
    return params, config_lib.Config(frozen=files, model=TOY)


@pytest.mark.parametrize("target", ["torch", "mlx"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_folder_holds_everything_and_reads_back(target, dtype, run, tmp_path):
    params, config = run
    out = export.export(params, config, target, tmp_path / "out", dtype=dtype)
    assert {p.name for p in out.iterdir()} == FILES | {targets.CONFIG_FILE[target]}
    assert (out / targets.CODEC_FILE).read_bytes() == b"mimi"
    assert (out / targets.TOKENIZER_FILE).read_bytes() == b"spm"
    loaded = tree.flatten(export.load_exported(out / "model.safetensors", TOY, target))
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(loaded[path], leaf.astype(dtype), err_msg=path)
    card = (out / "README.md").read_text()
    assert f"{sum(x.size for x in loaded.values()):,} parameters" in card
    assert f"stored as {np.dtype(dtype).name}" in card


def test_what_is_read_back_is_compared_bit_for_bit(run, tmp_path):
    params, config = run
    out = export.export(params, config, "torch", tmp_path / "out")
    path = out / "model.safetensors"
    tensors = safetensors_io.read(path)
    tensors["image_prefix.proj_xa.bias"][0] *= -1 + 2**-20
    tensors["llm.out_norm.alpha"][0, 0, 3] = np.nan
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match=r"2 parameters differ.*backbone/out_norm/scale") as error:
        export.assert_written(path, params, TOY, "torch")
    assert "image/proj/bias" in str(error.value)


@pytest.mark.parametrize(
    ("target", "changes", "name"),
    [
        ("mlx", {"gate": gates.Constant()}, "gate=Constant(activation='tanh')"),
        ("mlx", {"gate": gates.Conditional(3, "tanh")}, "activation='tanh'"),
        ("mlx", {"share_gate": True}, "share_gate=True"),
        ("mlx", {"share": "none"}, "share='none'"),
        ("torch", {"share": "none"}, "share='none'"),
        ("torch", {"share": "kv"}, "share='kv'"),
        ("torch", {"gate": gates.Conditional(7)}, "Conditional(hidden=7"),
        ("torch", {"image_norm_eps": 1e-3}, "('variance', 0.001)"),
    ],
)
def test_designs_the_target_would_run_wrongly_are_refused(target, changes, name, run, tmp_path):
    model = with_adapters(**changes)
    config = dataclasses.replace(run[1], model=model)
    with pytest.raises(ValueError, match=f"cannot export to {target}.*") as error:
        export.export(random_params(model), config, target, tmp_path / "out")
    assert name in str(error.value)
    assert "retrain" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_other_norms_and_delays_are_refused():
    eps = dataclasses.replace(TOY.backbone, norm_eps=1e-6)
    problems = targets.refusals(dataclasses.replace(TOY, backbone=eps), "torch")
    assert [p.split(":")[0] for p in problems] == ["backbone.norm_eps=1e-06"]
    late = dataclasses.replace(TOY, delays=(0, 0, 2, 2, 0, 2))
    assert not targets.refusals(late, "torch")
    assert targets.refusals(late, "mlx")[0].startswith("delays=(0, 0, 2, 2, 0, 2)")


def test_an_unwritable_folder_is_named(run, tmp_path):
    params, config = run
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="out"):
        export.export(params, config, "torch", tmp_path / "out")


def test_yaml_holds_the_keys_of_the_release_and_the_rules_of_its_sizes():
    config = yaml.safe_load(yaml.safe_dump(targets.torch_config(config_lib.ModelConfig())))
    release = {
        "add_boi_eoi": False,
        "align_img_and_speech_tokens_dim": True,
        "encoder_name": "siglip_gemma2_448",
        "interpolation": "bicubic",
        "mimi_codec": "tokenizer-e351c8d8-checkpoint125.safetensors",
        "model": "model.safetensors",
        "norm_extra": None,
        "norm_xa": "rms_norm",
        "num_crossattended_tokens": -1,
        "num_extra_tokens": 0,
        "text_tokenizer": "tokenizer_spm_32k_3.model",
        "xa_conditional_gating": True,
        "xa_delay": 0,
        "xa_dim": None,
        "xa_end": "end",
        "xa_gate_shared": False,
        "xa_gating": "sigmoid",
        "xa_layers": [],
        "xa_shared": True,
        "xa_step": 1,
        # MoshiConfig
        "hidden_scale": 4.125,
        "depformer_dim_feedforward": int(4.125 * 1024),
        "n_q": 16,
        "dep_q": 8,
        "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
    }
    assert {key: config[key] for key in release} == release


@pytest.mark.parametrize("hidden", [7, 8, 64, 65, 66, 63])
def test_any_mlp_width_survives_the_two_thirds_rule(hidden):
    width = 24
    backbone = dataclasses.replace(TOY.backbone, width=width, hidden=hidden)
    config = dataclasses.replace(TOY, backbone=backbone)
    nominal = int(targets.torch_config(config)["hidden_scale"] * width)
    assert nominal != 4 * width
    assert 2 * nominal // 3 == hidden
    nominal = targets.mlx_config(config)["transformer"]["dim_feedforward"]
    assert (11 * width // 4 if nominal == 4 * width else 2 * nominal // 3) == hidden


@pytest.mark.parametrize("target", ["torch", "mlx"])
def test_certificate(target, run, tmp_path):
    pytest.importorskip({"torch": "torch", "mlx": "mlx.core"}[target])
    params, config = run
    out = export.export(params, config, target, tmp_path / "out")
    rng = np.random.default_rng(2)
    pixels = rng.uniform(-1, 1, (1, 12, 12, 3)).astype(np.float32)
    user = rng.integers(0, TOY.audio_vocab, (2, FRAMES))
    found = certificate.certify(params, config, out, target, pixels=pixels, user_codes=user)
    assert found["reasons"] == []
    assert found["verdict"] == "pass"
    assert found["frames"] == found["greedy_frames_equal"] == FRAMES
    assert 0 < found["max_abs_logit_error"] < 1e-4
    assert 0 < found["greedy"]["max_abs_audio_logit_error"] < 1e-4
    assert found["max_abs_gate_error"] < 1e-4
    assert [0 < layer["max_abs_residual_error"] < 1e-4 for layer in found["layers"]] == [True] * 2
    assert found["frozen"]["sha256_at_start"] == found["frozen"]["sha256_in_export"]
    assert found["frozen"]["tensors"] == 20 + 21
    assert json.loads((out / "certificate.json").read_text()) == found


def test_a_changed_file_fails_its_certificate(run, tmp_path):
    pytest.importorskip("torch")
    params, config = run
    out = export.export(params, config, "torch", tmp_path / "out")
    path = out / "model.safetensors"
    tensors = safetensors_io.read(path)
    tensors["llm.text_linear.weight"] = tensors["llm.text_linear.weight"][::-1]
    safetensors_io.write(path, tensors)
    rng = np.random.default_rng(2)
    pixels = rng.uniform(-1, 1, (1, 12, 12, 3)).astype(np.float32)
    user = rng.integers(0, TOY.audio_vocab, (2, FRAMES))
    found = certificate.certify(params, config, out, "torch", pixels=pixels, user_codes=user)
    assert found["verdict"] == "fail"
    assert found["greedy_frames_equal"] == 0
    text = "; ".join(found["reasons"])
    for pattern in (r"max_abs_text_logit_error = .* exceeds", "0 of 104 frames", "frozen tensors"):
        assert re.search(pattern, text), pattern
    with pytest.raises(ValueError, match="at least 100 frames of user codes, got 9"):
        certificate.certify(params, config, out, "torch", pixels=pixels, user_codes=user[:, :9])
