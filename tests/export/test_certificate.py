"""Certificates: right files pass, rounded ones say what it costs, wrong ones fail."""

import json
import re

import exported
import pytest
import toy

from mvjax import tree
from mvjax.config import upstream
from mvjax.export import certificate, deviations, targets
from mvjax.export import folder as export_folder
from mvjax.weights import safetensors_io

TOY, FRAMES = exported.TOY, 104
RUNTIME = {"torch": "torch", "mlx": "mlx.core", "candle": "torch"}


def inputs(model=TOY):
    pixels, user = exported.inputs(FRAMES, model)
    return {"pixels": pixels, "user_codes": user}


@pytest.fixture
def run(tmp_path):
    """(parameters, config) whose frozen files exist."""
    params = exported.random_params(TOY, size=0.2)
    return params, exported.make_run(tmp_path, TOY, params)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_certificate(target, run, tmp_path):
    pytest.importorskip(RUNTIME[target])
    params, config = run
    out = export_folder.export(params, config, target, tmp_path / "out")
    found = certificate.certify(params, config, out, target, **inputs())
    assert found["reasons"] == []
    assert found["verdict"] == "pass"
    assert found["loss"] is None
    assert found["frames"] == found["greedy_frames_equal"] == FRAMES
    assert found["text_agreement"] == found["audio_agreement"] == 1
    assert 0 < found["mean_abs_logit_error"] < found["max_abs_logit_error"] < 1e-4
    assert 0 < found["greedy"]["max_abs_audio_logit_error"] < 1e-4
    assert found["max_abs_gate_error"] < 1e-4
    assert [0 < layer["max_abs_residual_error"] < 1e-4 for layer in found["layers"]] == [True] * 3
    hashes = [found["frozen"][f"sha256_{at}"] for at in ("at_start", "as_stored", "in_export")]
    assert len(set(hashes)) == 1
    assert found["frozen"]["tensors"] == 20 + 21
    assert found["values"] == {"tensors": len(tree.flatten(params)), "not_as_exported": []}
    assert ("kyuteye_rs itself was not run" in found["runtime"]) == (target == "candle")
    assert json.loads((out / "certificate.json").read_text()) == found
    export_folder.export(params, config, target, out)
    assert not (out / "certificate.json").exists()  # it would be of other files


def test_a_model_that_imitates_a_runtime_is_certified_as_trained(tmp_path):
    """Upstream then differs in its sizes, and in what it does whatever the config says."""
    pytest.importorskip(RUNTIME["mlx"])
    model = upstream.imitate(TOY, "kyuteye_mlx")
    params = exported.random_params(model, size=0.2)
    config = exported.make_run(tmp_path, model, params)
    out = export_folder.export(params, config, "mlx", tmp_path / "out")
    found = certificate.certify(params, config, out, "mlx", **inputs())
    assert found["verdict"] == "pass", found["reasons"]
    notes = [x for x in found["upstream_differences"] if "in mvjax's own runtimes only" not in x]
    assert notes == list(deviations.ALWAYS["mlx"])


@pytest.mark.parametrize(
    ("target", "how"), [("mlx", {"quantization": "q8"}), ("candle", {"quantization": "q8_0"})]
)
def test_what_quantization_costs_is_stated(target, how, tmp_path):
    pytest.importorskip(RUNTIME[target])
    pytest.importorskip("gguf")
    model = toy.QUANTIZABLE
    params = toy.quantizable_params()
    config = exported.make_run(tmp_path, model, params)
    out = export_folder.export(params, config, target, tmp_path / "out", **how)
    found = certificate.certify(params, config, out, target, **how, **inputs(model))
    assert_lossy(found)
    assert found["stored_as"] == how["quantization"]
    assert 1e-3 < found["loss"]["max_abs_logit_error"] < 0.5
    if target == "candle":
        assert found["vision_file_sha256"] != found["file_sha256"]


def test_what_bfloat16_costs_is_stated(run, tmp_path):
    pytest.importorskip("torch")
    out = export_folder.export(*run, "torch", tmp_path / "out", dtype="bfloat16")
    found = certificate.certify(*run, out, "torch", dtype="bfloat16", **inputs())
    assert_lossy(found)
    assert found["stored_as"] == "bfloat16"
    text = certificate.summary(found)
    assert text.startswith("lossy: largest logit error") and "same greedy text in" in text


def assert_lossy(found):
    """The runtime computes what the rounded weights say; what rounding cost is no secret."""
    assert found["reasons"] == []
    assert found["verdict"] == "lossy"
    assert found["greedy_frames_equal"] == FRAMES
    assert found["max_abs_logit_error"] < 1e-4
    assert found["frozen"]["sha256_at_start"] != found["frozen"]["sha256_as_stored"]
    assert found["frozen"]["sha256_as_stored"] == found["frozen"]["sha256_in_export"]
    loss = found["loss"]
    assert 1e-4 < loss["mean_abs_logit_error"] < loss["max_abs_logit_error"] / 2
    assert 0.5 < loss["text_agreement"] <= 1 and 0.5 < loss["audio_agreement"] <= 1
    assert 0 <= loss["greedy_frames_equal"] <= FRAMES


def test_a_changed_file_fails_its_certificate(run, tmp_path):
    pytest.importorskip("torch")
    params, config = run
    out = export_folder.export(params, config, "torch", tmp_path / "out")
    path = out / "model.safetensors"
    tensors = safetensors_io.read(path)
    tensors["llm.text_linear.weight"] = tensors["llm.text_linear.weight"][::-1]
    tensors["image_prefix.proj_xa.bias"] = tensors["image_prefix.proj_xa.bias"] + 1
    safetensors_io.write(path, tensors)
    found = certificate.certify(params, config, out, "torch", **inputs())
    assert found["verdict"] == "fail"
    text = "; ".join(found["reasons"])
    for pattern in (r"frozen tensors", r"not hold these .*image/proj/bias", "text_head/kernel"):
        assert re.search(pattern, text), pattern
    # the runtime does compute what the file says
    assert found["max_abs_logit_error"] < 1e-4
    assert found["loss"]["text_agreement"] < 0.5
    few = inputs()["user_codes"][:, :9]
    with pytest.raises(ValueError, match="at least 100 frames of user codes, got 9"):
        certificate.certify(params, config, out, "torch", **inputs() | {"user_codes": few})


def test_a_runtime_that_computes_otherwise_fails(run, tmp_path):
    pytest.importorskip("torch")
    out = export_folder.export(*run, "torch", tmp_path / "out")
    path = out / "moshika-vis.yaml"
    path.write_text(path.read_text().replace("norm_xa: rms_norm\n", "norm_xa: real_rms_norm\n"))
    found = certificate.certify(*run, out, "torch", **inputs())
    assert found["verdict"] == "fail"
    text = "; ".join(found["reasons"])
    assert re.search(r"max_abs_text_logit_error = .* exceeds", text)
    assert "frozen" not in text
