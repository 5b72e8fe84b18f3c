"""Certificates: right files pass, rounded ones say what it costs, wrong ones fail."""

import dataclasses
import json
import re

import exported
import pytest
import toy

from mvjax import cli, tree
from mvjax.config import schema, upstream
from mvjax.export import certificate, deviations, model_card, verdict, verify, weight_files
from mvjax.export import folder as export_folder
from mvjax.train import load
from mvjax.weights import codecs, file_names, safetensors_io

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


@pytest.mark.parametrize("target", ["torch", "mlx", pytest.param("candle", marks=pytest.mark.slow)])
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
    written = {path.name for path in out.iterdir()} - {"certificate.json"}
    assert found["files"].keys() == written and found["not_as_exported"] == []
    assert found["talked_past_window"] and found["window"] == TOY.backbone.context
    served = found["served"]  # the same runtime, in another dtype
    assert served["dtype"] == "bfloat16" and served["text_agreement"] > 0.8
    assert 1e-4 < served["mean_abs_logit_error"] < served["max_abs_logit_error"] < 0.5
    assert "served in bfloat16, beside the same in float32" in verdict.summary(found)
    assert verify.verify(out) == ([], [])
    export_folder.export(params, config, target, out)
    assert not (out / "certificate.json").exists()  # it would be of other files


@pytest.mark.slow
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


@pytest.mark.slow
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
    rounded = found.get("loss_with_8_bit_activations")
    assert (rounded is not None) == (target == "candle")
    if target == "candle":
        assert rounded["mean_abs_logit_error"] > found["loss"]["mean_abs_logit_error"]
        assert "with activations in 8 bits, as kyuteye_rs has them" in verdict.summary(found)
        assert any("CANDLE_DEQUANTIZE_ALL" in note for note in found["upstream_differences"])
        assert "model_vision_tower_unquant.safetensors" in found["files"]


def test_what_bfloat16_costs_is_stated_once_the_runtime_is_there(
    run, tmp_path, monkeypatch, capsys
):
    """`mvjax certify` completes what was certified where no torch was."""
    pytest.importorskip("torch")
    params, config = run
    out = export_folder.export(params, config, "torch", tmp_path / "out", dtype="bfloat16")
    monkeypatch.setattr(load, "trained", lambda *_: load.TrainedRun(config, params, 7))
    asked = ["certify", str(out), "--run", "it@7", "--frames", str(FRAMES)]
    with monkeypatch.context() as elsewhere:
        exported.absent(elsewhere, "torch")
        before = certificate.certify(params, config, out, "torch", dtype="bfloat16", **inputs())
        assert cli.main(asked) == 2 and "needs torch" in capsys.readouterr().err
        assert json.loads((out / "certificate.json").read_text()) == before  # not begun anew
    card = (out / "README.md").read_text()
    assert "**Certificate: not run: " in card
    (out / "README.md").write_text(card.replace("names their license here", "says: MIT"))
    assert cli.main(asked) == 0
    text = capsys.readouterr().out.removeprefix(f"{out}: ")
    assert text.startswith("lossy: largest logit error") and "same greedy text in" in text
    found = json.loads((out / "certificate.json").read_text())
    assert_lossy(found)
    assert found["stored_as"] == "bfloat16" and "not_run" not in found
    assert (found["frames"], found["values"]) == (FRAMES, before["values"])
    assert verify.verify(out) == ([], [])
    card = (out / "README.md").read_text()
    assert "**Certificate: lossy: " in card and "says: MIT" in card
    assert "**Certificate: not run: " not in card
    weights = out / file_names.MODEL
    weights.write_bytes(weights.read_bytes()[:-9])
    assert cli.main(asked) == 2 and str(weights) in capsys.readouterr().err
    assert not (out / "certificate.json").exists()  # of other weights
    weights.unlink()
    assert cli.main(asked) == 2
    assert f"{weights}: expected the weights, found no such file" in capsys.readouterr().err
    assert model_card.UNCERTIFIED in (out / "README.md").read_text()


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


def _set(path, key, value):
    """Changes a key of a YAML, as an editor would."""
    text = path.read_text()
    assert f"\n{key}: " in text
    path.write_text(re.sub(rf"(?m)^{key}: .*$", f"{key}: {value}", text))


def test_a_wrong_context_fails_past_the_window(run, tmp_path):
    pytest.importorskip("torch")
    out = export_folder.export(*run, "torch", tmp_path / "out")
    _set(out / "moshika-vis.yaml", "context", 4)
    found = certificate.certify(*run, out, "torch", **inputs())
    assert found["verdict"] == "fail"
    text = "; ".join(found["reasons"])
    assert "moshika-vis.yaml: context: expected 5, found 4" in text
    assert re.search(r"max_abs_text_logit_error = .* exceeds", text)


def alike(monkeypatch):
    """Every runtime computes what JAX computes."""
    errors = dict.fromkeys(certificate._LOSS, 0.0) | {"greedy_frames_equal": FRAMES}
    kinds = dict.fromkeys(("max_abs_text_logit_error", "max_abs_audio_logit_error"), 0.0)
    monkeypatch.setattr(certificate, "_talk", lambda *_: ("a runtime", []))
    monkeypatch.setattr(certificate, "_served", lambda *_: errors | {"dtype": "bfloat16"})
    monkeypatch.setattr(certificate.agreement, "compare", lambda *_, **__: errors | kinds)


@pytest.mark.parametrize("context", [5, FRAMES - 1, FRAMES, 3000])
def test_a_conversation_within_the_window_says_so_and_a_wrong_context_still_fails(
    context, tmp_path, monkeypatch
):
    alike(monkeypatch)
    model = dataclasses.replace(TOY, backbone=dataclasses.replace(TOY.backbone, context=context))
    params = exported.random_params(model, size=0.2)
    config = exported.make_run(tmp_path, model, params)
    out = export_folder.export(params, config, "torch", tmp_path / "out")
    found = certificate.certify(params, config, out, "torch", **inputs(model))
    assert found["verdict"] == "pass"
    past = context < FRAMES
    told = f"do not reach past the attention window of {context}" in verdict.summary(found)
    assert (found["talked_past_window"], told) == (past, not past)
    _set(out / "moshika-vis.yaml", "context", 250)
    found = certificate.certify(params, config, out, "torch", **inputs(model))
    assert found["reasons"] == [f"moshika-vis.yaml: context: expected {context}, found 250"]
    assert found["verdict"] == "fail"


@pytest.mark.parametrize(("window", "frames"), [(5, 120), (120, 128), (250, 258), (3000, 120)])
def test_a_conversation_is_as_long_as_the_window_asks(window, frames):
    backbone = dataclasses.replace(TOY.backbone, context=window)
    assert certificate.usual_frames(dataclasses.replace(TOY, backbone=backbone)) == frames


def test_every_file_is_the_runs_or_the_certificate_fails(run, tmp_path, monkeypatch):
    alike(monkeypatch)
    params, config = run
    out = export_folder.export(params, config, "candle", tmp_path / "out")
    (out / file_names.CODEC).write_bytes(b"another")
    codecs.write_sizes(out, schema.MimiConfig(latent=128))
    path = out / "config-moshika-vis.json"
    content = json.loads(path.read_text())
    content["lm_config"]["text_eop_token"] = 1
    content["mvjax"]["more"] = content.pop("port")
    path.write_text(json.dumps(content))
    found = certificate.certify(params, config, out, "candle", **inputs())
    assert found["verdict"] == "fail"
    assert found["reasons"] == [
        "config-moshika-vis.json: lm_config.text_eop_token: expected 0, found 1",
        "config-moshika-vis.json: mvjax.more: expected 'no such key', found 8008",
        "config-moshika-vis.json: port: expected 8008, found 'no such key'",
        "codec.json: is not the run's",
        f"{file_names.CODEC}: is not the run's",
    ]


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b"\xff\x00"])
def test_a_damaged_or_missing_file_is_a_reason_to_fail(run, tmp_path, monkeypatch, content):
    alike(monkeypatch)
    params, config = run
    out = export_folder.export(params, config, "torch", tmp_path / "out")
    names = [file_names.TORCH_CONFIG, file_names.TALK]
    if content is not None:
        names.insert(1, file_names.CODEC_CONFIG)
    for path in (out / name for name in names):
        path.unlink() if content is None else path.write_bytes(content)
    found = certificate.certify(params, config, out, "torch", **inputs())
    why = "is missing" if content is None else "is damaged"
    assert found["reasons"] == [f"{name}: {why}" for name in names]


def test_an_earlier_verdict_stays_when_certifying_is_refused_or_interrupted_not_when_it_fails(
    run, tmp_path, monkeypatch
):
    params, config = run
    out = export_folder.export(params, config, "torch", tmp_path / "out")
    earlier = '{"verdict": "pass"}'
    (out / "certificate.json").write_text(earlier)
    card = out / file_names.CARD
    model_card.state(out, "as before")
    before = card.read_text()
    assert "as before" in before
    few = {**inputs(), "user_codes": inputs()["user_codes"][:, :9]}
    for how, error, stays in (
        (few, ValueError, True),
        (inputs(), KeyboardInterrupt, True),
        (inputs(), OSError, False),
    ):

        def stops(*_, error=error, **__):
            raise error

        monkeypatch.setattr(weight_files, "open_exported", stops)
        with pytest.raises(error):
            certificate.certify(params, config, out, "torch", **how)
        assert (out / "certificate.json").exists() == stays
        assert (card.read_text() == before) == stays
    assert model_card.UNCERTIFIED in card.read_text()


def test_verify_names_what_it_cannot_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected the folder of an export, got a file"):
        verify.verify(tmp_path / "file")
    (tmp_path / "certificate.json").write_bytes(b'{"a\xff')
    with pytest.raises(ValueError, match=r"certificate\.json: damaged .*; export again"):
        verify.verify(tmp_path)
    for name in ("config.json", "config.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="got a run folder"):
        verify.verify(tmp_path)


def test_verify_finds_whatever_is_no_longer_as_certified(tmp_path, capsys):
    names = ("model.safetensors", "moshika-vis.yaml", file_names.CODEC, "README.md")
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "model_pt.safetensors").symlink_to("model.safetensors")
    with pytest.raises(ValueError, match="was not certified; export again"):
        verify.verify(tmp_path)
    recorded = exported.CERTIFICATE | {
        "files": verify.hashes(tmp_path), "talked_past_window": False, "window": 250,
    }  # fmt: skip
    certified = tmp_path / "certificate.json"
    certified.write_text(json.dumps(recorded))
    assert recorded["files"]["model_pt.safetensors"] == "link to model.safetensors"
    problems, notes = verify.verify(tmp_path)
    assert problems == [] and "window of 250" in notes[0]
    assert verify.report(tmp_path) == 0
    assert "as certified: pass, 5 files" in capsys.readouterr().out

    (tmp_path / "model_pt.safetensors").unlink()  # a copy of the same is as good as the link
    (tmp_path / "model_pt.safetensors").write_text("model.safetensors")
    assert verify.verify(tmp_path)[0] == []
    (tmp_path / "README.md").write_text("a license")
    (tmp_path / "key.pem").write_text("secret")
    (tmp_path / "tokenizer_spm_32k_3.model").write_text("one that a runtime reads")
    (tmp_path / file_names.CODEC).write_text("another")
    (tmp_path / "moshika-vis.yaml").unlink()
    certified.write_text(json.dumps(recorded | {"verdict": "fail", "not_as_exported": ["why"]}))
    problems, notes = verify.verify(tmp_path)
    assert problems == [
        "the certificate's verdict is fail: why",
        "moshika-vis.yaml: missing",
        f"{file_names.CODEC}: changed since it was certified",
        "tokenizer_spm_32k_3.model: added since, and a runtime may read it",
    ]
    assert notes[0] == "README.md: changed since it was certified" and "such as key.pem" in notes[1]
    assert verify.report(tmp_path) == 1
    assert "4 problems" in capsys.readouterr().out
    certified.write_text('{"verdict": "pass"}')
    with pytest.raises(ValueError, match="holds no hashes of all files"):
        verify.verify(tmp_path)
    certified.write_text('{"verdict": "pass", "files": {}}')
    with pytest.raises(ValueError, match="holds no numbers to judge by .*'tolerance'"):
        verify.verify(tmp_path)


@pytest.mark.parametrize(
    ("error", "largest", "expected"),
    [
        (9e-5, 0.1, "pass"),
        (2e-3, 0.1, "fail"),
        (2e-3, 30.0, "pass"),
        (4e-3, 30.0, "fail"),
        (2e-3, float("inf"), "fail"),
        (float("nan"), 30.0, "fail"),
    ],
)
def test_logits_are_held_to_a_share_of_the_largest_which_holds_on_any_processor(
    error, largest, expected
):
    given = {"max_abs_text_logit_error": error, "max_abs_text_logit": largest}
    assert verdict.verdict(exported.CERTIFICATE | given)["verdict"] == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_abs_gate_error": 0.5}, "pass, but its numbers say fail\n  max_abs_gate_error = 0.5"),
        ({"max_abs_text_logit_error": float("nan")}, "say fail\n  max_abs_text_logit_error = nan"),
        ({"greedy_frames_equal": 7}, "say fail\n  greedy tokens agree over 7 of 120 frames"),
        ({"values": {"not_as_exported": ["xa/q"]}}, "does not hold these .*: xa/q"),
        ({"frozen": {"sha256_as_stored": "a", "sha256_in_export": "b"}}, "the frozen tensors are"),
        ({"loss": {}}, "pass, but its numbers say lossy$"),
        ({"verdict": "fail"}, "fail, but its numbers say pass$"),
    ],
)
def test_a_verdict_that_was_edited_is_noticed(changes, told, tmp_path, capsys):
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(exported.CERTIFICATE | {"files": {}} | changes))
    (problem,), _ = verify.verify(tmp_path)
    assert re.search(told, problem), problem
    assert verify.report(tmp_path) == 1 and "1 problem; export again" in capsys.readouterr().out
