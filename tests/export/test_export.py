"""Export folders: what is in them, how they read back, what the card says."""

import dataclasses
import json

import exported
import ml_dtypes
import numpy as np
import pytest
import toy
import yaml

from mvjax import files, gates, scopes, tree
from mvjax.config import schema
from mvjax.export import folder as export_folder
from mvjax.export import licenses, model_card, targets, weight_files
from mvjax.weights import codecs, file_names, rules

TOY = exported.TOY
FILES = {
    "README.md",
    "siglip448.config",
    "talk.json",
    "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer_spm_32k_3.model",
}
UPSTREAM_FILES = {  # reference section 4.2, configs, and the name that kyuteye_pt opens locally
    ("torch", None): {"model.safetensors", "model_pt.safetensors", "moshika-vis.yaml"},
    ("mlx", None): {"model.safetensors", "config.json"},
    ("mlx", "q8"): {"model.q8.safetensors", "config.json"},
    ("mlx", "q4"): {"model.q4.safetensors", "config.json"},
    ("candle", None): {"model.safetensors", "config-moshika-vis.json"},
    ("candle", "q8_0"): {
        "model.q8_0.gguf",
        "model_vision_tower_unquant.safetensors",
        "config-moshika-vis-q8.json",
    },
}


@pytest.fixture
def run(tmp_path):
    """(parameters, config) whose frozen files exist."""
    params = exported.random_params(TOY)
    return params, exported.make_run(tmp_path, TOY, params)


@pytest.mark.parametrize("target", targets.TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folder_holds_everything_and_reads_back(target, dtype, run, tmp_path):
    params, config = run
    out = export_folder.export(params, config, target, tmp_path / "out", dtype=dtype)
    assert {p.name for p in out.iterdir()} == FILES | UPSTREAM_FILES[target, None]
    assert (out / file_names.CODEC).read_bytes() == b"mimi"
    assert (out / file_names.TOKENIZER).read_bytes() == b"spm"
    loaded = tree.flatten(weight_files.load_exported(out / "model.safetensors", TOY, target))
    for path, leaf in tree.flatten(params).items():
        # upstream's PyTorch file keeps the image encoder in float32; reference section 4.2
        wide = dtype == "float32" or (target == "torch" and path.startswith("image/encoder/"))
        kept = np.dtype(np.float32 if wide else ml_dtypes.bfloat16)
        assert loaded[path].dtype == kept, path
        np.testing.assert_array_equal(loaded[path], leaf.astype(kept), err_msg=path)
    card = (out / "README.md").read_text()
    assert f"{sum(x.size for x in loaded.values()):,} parameters" in card
    assert f"stored as {dtype}" in card
    assert str(tmp_path) not in card
    again = tmp_path / "again"
    export_folder.export(tree.unflatten(loaded), config, target, again)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_codec_of_other_sizes_states_them(run, tmp_path):
    params, config = run
    for codec, stated in ((schema.MimiConfig(latent=128), True), (schema.MimiConfig(), False)):
        config = dataclasses.replace(config, codec=codec)
        out = export_folder.export(params, config, "torch", tmp_path / "out")
        assert codecs.read_sizes(out) == (codec if stated else None)
        assert (out / file_names.CODEC_CONFIG).exists() == stated  # replaced with the export


@pytest.mark.parametrize(
    ("target", "quantization"), [("mlx", "q8"), ("mlx", "q4"), ("candle", "q8_0")]
)
def test_quantized_folders_hold_upstreams_files(target, quantization, tmp_path):
    pytest.importorskip("gguf")
    model, params = toy.QUANTIZABLE, toy.quantizable_params()
    config = exported.make_run(tmp_path, model, params)
    out = export_folder.export(params, config, target, tmp_path / "out", quantization=quantization)
    assert {p.name for p in out.iterdir()} == FILES | UPSTREAM_FILES[target, quantization]
    file = targets.weight_file(target, quantization)
    loaded = tree.flatten(weight_files.load_exported(out / file, model, target, dtype=np.float32))
    views = weight_files.as_stored(params, model, target, quantization=quantization)
    stored = tree.unflatten(rules.read_leaves(views, place="as stored"))
    for path, leaf in tree.flatten(stored).items():
        np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)
    if quantization != "q8_0":  # the only one that finds its own values again
        return
    again = tmp_path / "again"
    export_folder.export(tree.unflatten(loaded), config, target, again, quantization=quantization)
    for name in UPSTREAM_FILES[target, quantization]:
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_a_torch_folder_is_ready_for_a_server_without_a_repository(run, tmp_path):
    # kyuteye_pt, given `hf_repo: null`, opens X_pt.safetensors for X.safetensors
    out = export_folder.export(*run, "torch", tmp_path / "out")
    export_folder.export(*run, "torch", out)
    config = yaml.safe_load((out / "moshika-vis.yaml").read_text())
    opened = out / config["model"].replace(".safetensors", "_pt.safetensors")
    assert config["hf_repo"] is None
    assert opened.read_bytes() == (out / "model.safetensors").read_bytes()


def test_the_card_tells_the_hub_what_it_needs_and_people_where_it_comes_from(run, tmp_path):
    params, config = run
    hub = dataclasses.replace(config.frozen, moshi="hf://kyutai/moshika-pytorch-bf16@main/a.b")
    (tmp_path / "eval").mkdir()
    table = [{"kind": "all", "n": 7, "text": 0.91234, "audio": None}]
    (tmp_path / "eval" / "digits.json").write_text(json.dumps({"step": 600, "table": table}))
    (tmp_path / "eval" / "old.json").write_text(json.dumps({"step": 500, "table": table}))
    (tmp_path / "eval" / "answers.json").write_text("[]")
    text = model_card.text(
        params,
        dataclasses.replace(config, frozen=hub),
        "mlx",
        dtype=None,
        quantization="q8",
        results=model_card.read_results(tmp_path, step=600),
    )
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["base_model"] == ["kyutai/moshika-pytorch-bf16"]
    assert metadata["base_model_relation"] == "quantized"
    assert metadata["license"] == "other" and "## Licenses" in body
    assert "| moshi | `hf://kyutai/moshika-pytorch-bf16@main/a.b` | cc-by-4.0 |" in body
    assert f"| codec | `mimi` | {licenses.UNKNOWN} |" in body
    assert "PersonaPlex" not in body  # these widths do not load there
    assert metadata["language"] == ["en"] and "commercial" not in body
    assert "600 steps" in body and "| all | 7 | 0.912 | - |" in body
    assert "`digits`" in body and "`old`" not in body
    assert "pip install 'mvjax[serve,mlx]'" in body
    assert "    mvjax serve ." in body and "Not by kyuteye_mlx's server" in body
    assert "`certificate.json` says what that costs" in body


def test_what_is_read_back_is_compared_bit_for_bit(run, tmp_path):
    params, config = run
    out = export_folder.export(params, config, "torch", tmp_path / "out")
    path = out / "model.safetensors"
    views = weight_files.to_tensors(params, config.model, "torch")
    tensors = {name: np.array(view[()]) for name, view in views.items()}
    weight_files.assert_written(path, tensors)
    tensors["image_prefix.proj_xa.bias"][0] *= -1 + 2**-20
    tensors["llm.out_norm.alpha"] = tensors["llm.out_norm.alpha"].astype(ml_dtypes.bfloat16)
    tensors["more"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"3 tensors differ.*image_prefix\.proj_xa\.bias.*more"):
        weight_files.assert_written(path, tensors)


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
        ("torch", {"image_norm_eps": 1e-3}, "image_norm_eps=0.001"),
        ("mlx", {"scope": scopes.Scope(frames=5)}, "Scope(start=0, frames=5)"),
        ("candle", {"scope": scopes.Scope(2, 5)}, "Scope(start=2, frames=5)"),
        ("candle", {"share_gate": True}, "share_gate=True"),
        ("candle", {"share": "kv"}, "share='kv'"),
        ("candle", {"layers": (0, 1)}, "layers=(0, 1): kyuteye_rs: every layer has"),
        ("torch", {"layers": (1, 2)}, "layers=(1, 2): kyuteye_pt: its server takes keys"),
        ("torch", {"gate": gates.Conditional(3, bias=True)}, "kyuteye_pt: no gate has a bias"),
    ],
)
def test_designs_the_target_would_run_wrongly_are_refused(target, changes, name, run, tmp_path):
    model = exported.with_adapters(**changes)
    config = dataclasses.replace(run[1], model=model)
    with pytest.raises(ValueError, match=f"cannot export to {target}.*") as error:
        export_folder.export(exported.random_params(model), config, target, tmp_path / "out")
    assert name in str(error.value)
    assert "retrain" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "quantization", "message"),
    [
        ("torch", "q8", "cannot export q8 to torch: kyuteye_pt loads no quantized weights"),
        ("mlx", "q8_0", r"nn\.quantize.*its quantizations: \['q8', 'q4'\]"),
        ("candle", "q4", r"its quantizations: \['q8_0'\]"),
        ("mlx", "q4", r"cannot export to mlx.*\n  backbone\.width=24,.*: q4 needs multiples of 32"),
    ],
)
def test_quantizations_that_a_target_cannot_read_are_refused(
    target, quantization, message, run, tmp_path
):
    with pytest.raises(ValueError, match=message):
        export_folder.export(*run, target, tmp_path / "out", quantization=quantization)
    assert not (tmp_path / "out").exists()


def test_a_dtype_beside_a_quantization_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="drop one of dtype and quantization"):
        export_folder.export(*run, "candle", tmp_path / "o", dtype="bfloat16", quantization="q8_0")


def test_a_run_folder_or_a_file_is_no_folder_to_export_into(run, tmp_path):
    params, config = run
    (tmp_path / "file").write_text("")
    for name in ("config.json", "config.txt"):
        (tmp_path / name).write_text("{}")
    for out, what in ((tmp_path, "a run folder"), (tmp_path / "file", "a file")):
        with pytest.raises(ValueError, match=f"export alone, got {what}"):
            export_folder.export(params, config, "torch", out)
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / ".part").exists()


def test_an_unwritable_folder_is_named(run, tmp_path):
    params, config = run
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match="out"):
        export_folder.export(params, config, "torch", tmp_path / "file" / "out")


def _state(folder):
    """{name: bytes, or what a link points to} of a folder."""
    return {
        path.name: str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.iterdir()
    }


def test_an_export_of_another_target_is_refused_and_stays(run, tmp_path):
    out = export_folder.export(*run, "torch", tmp_path / "out")
    before = _state(out)
    for other in ("mlx", "candle"):
        with pytest.raises(
            ValueError, match=f"an export to {other} to replace, found an export to torch"
        ):
            export_folder.export(*run, other, out)
    assert _state(out) == before


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors"])
@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_folder_of_something_else_keeps_its_files(name, target, run, tmp_path):
    """A run folder has a config.json, too, and a repository its README.md."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    if name in file_names.owned(target):
        with pytest.raises(ValueError, match=f"found other files .{name}"):
            export_folder.export(*run, target, tmp_path / "out")
        assert _state(tmp_path / "out") == {name: b"mine"}
    else:
        export_folder.export(*run, target, tmp_path / "out")
        assert (tmp_path / "out" / name).read_text() == "mine"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("earlier", ["none", "an empty folder", "an export"])
def test_half_an_export_never_stays(error, earlier, run, tmp_path, monkeypatch):
    params, config = run
    out = tmp_path / "out"
    if earlier == "an empty folder":
        out.mkdir()
    if earlier == "an export":
        export_folder.export(params, config, "torch", out)
        (out / "certificate.json").write_text("of these files")
    before = _state(out) if out.exists() else None

    def fail(*_, **__):
        raise error("no space")

    monkeypatch.setattr(model_card, "text", fail)  # the weights are written by then
    with pytest.raises(error):
        export_folder.export(params, config, "torch", out, dtype="bfloat16")
    assert (_state(out) if out.exists() else None) == before


def test_what_an_earlier_export_stored_otherwise_goes(tmp_path):
    pytest.importorskip("gguf")
    model, params = toy.QUANTIZABLE, toy.quantizable_params()
    config = exported.make_run(tmp_path, model, params)
    out = tmp_path / "out"
    (out / files.DRAFT).mkdir(parents=True)  # of an export that was killed
    for how in ({"quantization": "q8_0"}, {}, {"quantization": "q8_0"}):
        export_folder.export(params, config, "candle", out, **how)
        expected = FILES | UPSTREAM_FILES["candle", how.get("quantization")]
        assert _state(out).keys() == expected
