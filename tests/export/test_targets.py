"""The compatibility matrix, the notes on what it lets pass, and the runtimes' config files."""

import ast
import dataclasses
import re
from pathlib import Path

import exported
import pytest
import yaml

from mvjax import gates, scopes
from mvjax.config import schema, upstream
from mvjax.export import deviations, matrix, runtime_configs, serving, targets

ROOT = Path(runtime_configs.__file__).parents[1]
TOY = exported.TOY
KINDS = (
    "gate", "share", "layers", "image tokens", "image projection", "scope", "image norm",
    "depth transformer norm", "norm eps", "delays", "image encoder", "sizes", "codebooks",
    "padding ids",
)  # fmt: skip
NEW = (
    {"gate": gates.Conditional(3, bias=True), "dim": 14},
    {"gate": gates.Conditional(3, "tanh", bias=True), "layers": (0, 2)},
    {"scope": scopes.Scope(2), "layers": (1,)},
    {"scope": scopes.Scope(2, 5), "dim": 24},
)


def test_other_norms_and_delays_are_refused():
    eps = dataclasses.replace(TOY.backbone, norm_eps=1e-6)
    for target in targets.TARGETS:
        (problem,) = targets.refusals(dataclasses.replace(TOY, backbone=eps), target)
        assert problem.startswith("backbone.norm_eps=1e-06, depformer.norm_eps=1e-08: kyuteye_")
    for delays, refusing in {
        (0, 0, 2, 2, 0, 2): ["mlx"],
        (0, 0, 1, 1, 0, 2): ["mlx", "candle"],  # the user's: its server has delays of its own
        (0, 0, 1, 2, 0, 1): ["mlx", "candle"],
        TOY.delays: [],
    }.items():
        model = dataclasses.replace(TOY, delays=delays)
        found = {target: targets.refusals(model, target) for target in targets.TARGETS}
        assert [target for target, problems in found.items() if problems] == refusing
        assert all(p[0].startswith(f"delays={delays}") for p in found.values() if p)


def test_the_matrix_lists_every_design_and_every_reason_once():
    text = targets.table()
    head, *rest = text.split("\n")
    assert head.split() == list(targets.TARGETS)
    rows = {line.choice: rest[k] for k, line in enumerate(matrix.MATRIX)}
    assert [cell.split()[0] for cell in rows["gate: constant tanh"].split("  ") if cell.strip()] == [
        "gate:", "yes", "no", "nearly",
    ]  # fmt: skip
    notes = dict(re.findall(r"^\[(\d+)\] (.*)$", text, flags=re.M))
    assert set(re.findall(r"(?:no|nearly) \[(\d+)\]", text)) == set(notes)
    assert len(set(notes.values())) == len(notes)
    assert not any("reference" in note for note in notes.values())
    for line in matrix.MATRIX:
        assert not (line.refused and not line.remedy), line.choice
    for name in ("float32", "bfloat16", "q8", "q4", "q8_0"):
        assert f"file: {name} " in text


@pytest.mark.parametrize("target", targets.TARGETS)
def test_every_model_makes_one_choice_of_each_kind(target):
    for changes in ({}, {"gate": None}, {"gate": gates.Constant("sigmoid"), "share": "none"}, *NEW):
        model = exported.with_adapters(**changes)
        made = [line.choice for line in matrix.MATRIX if line.made_by(model)]
        for kind in KINDS:
            assert sum(choice.startswith(f"{kind}: ") for choice in made) == 1, (kind, made)
        refused = [line for line in matrix.MATRIX if line.made_by(model) and target in line.refused]
        assert len(targets.refusals(model, target)) == len(refused)


def test_the_release_is_run_by_all_and_only_torch_is_told_its_image_norm():
    model = schema.ModelConfig()
    assert [targets.refusals(model, target) for target in targets.TARGETS] == [[], [], []]
    notes = {target: " ".join(deviations.deviations(model, target)) for target in targets.TARGETS}
    assert "drops the first" in notes["torch"] and "image tokens by" not in notes["torch"]
    for target in ("mlx", "candle"):
        assert "norms image tokens by their mean square" in notes[target]
        assert "one frame more" in notes[target]
        assert "the release's sizes" not in notes[target]
    toy = " ".join(deviations.deviations(TOY, "candle"))
    assert "So400m" in toy and "the release's sizes" in toy


def test_yaml_holds_the_keys_of_the_release_and_the_rules_of_its_sizes():
    config = yaml.safe_load(yaml.safe_dump(runtime_configs.torch_config(schema.ModelConfig())))
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


def test_designs_are_told_in_the_runtimes_words():
    model = exported.with_adapters(dim=14, layers=(0, 2))
    told = runtime_configs.torch_config(model)
    assert (told["xa_dim"], told["xa_layers"]) == (14, [0, 2])
    model = exported.with_adapters(dim=14, gate=gates.Conditional(3, "tanh", bias=True))
    told = runtime_configs.candle_config(model)
    assert told["cross_attention_in_dims"] == 14
    assert told["cross_attention_gating"] == "ConditionalGatedTanhLearnableBias"


@pytest.mark.parametrize("hidden", [7, 8, 64, 65, 66, 63])
def test_any_mlp_width_survives_the_two_thirds_rule(hidden):
    width = 24
    backbone = dataclasses.replace(TOY.backbone, width=width, hidden=hidden)
    config = dataclasses.replace(TOY, backbone=backbone)
    nominal = int(runtime_configs.torch_config(config)["hidden_scale"] * width)
    assert nominal != 4 * width
    assert 2 * nominal // 3 == hidden
    nominal = runtime_configs.mlx_config(config)["transformer"]["dim_feedforward"]
    assert (11 * width // 4 if nominal == 4 * width else 2 * nominal // 3) == hidden


def test_candle_config_is_the_releases():
    config = runtime_configs.candle_config(schema.ModelConfig(), "q8_0")
    release = {  # config-moshika-vis-q8.json, but for paths
        "lm_model_file": "model.q8_0.gguf",
        "text_tokenizer_file": "tokenizer_spm_32k_3.model",
        "mimi_model_file": "tokenizer-e351c8d8-checkpoint125.safetensors",
        "mimi_num_codebooks": 8,
        "addr": "0.0.0.0",
        "port": 8008,
        "lm_config": {
            "acoustic_delay": 1,
            "generated_audio_codebooks": 8,
            "input_audio_codebooks": 8,
            "audio_vocab_size": 2049,
            "text_eop_token": 0,
            "text_pad_token": 3,
            "text_start_token": 32000,
        },
        "image_prefix_backbone": "Siglip448",
        "image_prefix_use_rms_norm": True,
        "cross_attention_gating": "ConditionalGatedSigmoid",
        "cross_attention_in_dims": None,
    }
    assert {key: config[key] for key in release} == release
    assert {"instance_name", "log_dir", "static_dir", "cert_dir", "hf_repo"} <= config.keys()
    gatings = {
        gate: runtime_configs.candle_config(exported.with_adapters(gate=gate))[
            "cross_attention_gating"
        ]
        for gate in (
            None,
            gates.Constant(),
            gates.Constant("sigmoid"),
            gates.Conditional(3, "tanh"),
        )
    }
    assert list(gatings.values()) == [
        "Normal", "ConstantGatedTanh", "ConstantGatedSigmoid", "ConditionalGatedTanh",
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Film(gates.Constant):
    """A gate of one's own, after BUILD.md's recipe, with a field `activation` as others have."""

    strength: float = 1.0


@dataclasses.dataclass(frozen=True)
class Sharper(gates.Conditional):
    """One more."""

    temperature: float = 2.0


@pytest.mark.parametrize("gate", [Film(), Film("sigmoid"), Sharper(3)], ids=str)
def test_a_gate_that_no_runtime_has_is_refused_by_name(gate):
    model = exported.with_adapters(gate=gate)
    for target in targets.TARGETS:
        problems = targets.refusals(model, target)
        assert any(f"{gate!r}" in problem for problem in problems), target
        deviations.deviations(model, target)
        with pytest.raises(ValueError, match="no upstream runtime has it"):
            runtime_configs.contents(model, target)


def test_a_choice_that_no_row_makes_is_refused():
    model = exported.with_adapters()
    object.__setattr__(model.cross_attention, "share", "q")
    for target in targets.TARGETS:
        text = " ".join(targets.refusals(model, target))
        assert "share='q'" in text and "no such share" in text, target


def test_every_field_of_a_model_is_known_to_the_export():
    """A new one is in a row, in a config file, or in which the runtimes differ."""
    known = {path for row in matrix.MATRIX for path in row.fields}
    known |= upstream.settings("candle").keys()
    known |= {
        "cross_attention.gate.hidden", "cross_attention.gate.activation",
        "cross_attention.gate.bias", "cross_attention.scope.start", "cross_attention.scope.frames",
        "cross_attention.layers",
        "dtype",  # of training; the runtimes have theirs
        "stream.absent_start",  # of text-only rows; a conversation has all streams
    }  # fmt: skip
    assert _paths(schema.ModelConfig()) - known == set()


def _paths(value, prefix=""):
    """Every leaf path; the image encoder is one choice."""
    found = set()
    for field in dataclasses.fields(value):
        path, inner = prefix + field.name, getattr(value, field.name)
        whole = path == "siglip" or not dataclasses.is_dataclass(inner)
        found |= {path} if whole else _paths(inner, f"{path}.")
    return found


@pytest.mark.parametrize("size", [224, 448, 896, 336, 434])
def test_image_sizes_are_told_or_refused(size):
    model = schema.ModelConfig(siglip=schema.SiglipConfig(image_size=size))
    encoder = size in (224, 448, 896)
    for target in targets.TARGETS:
        problems = targets.refusals(model, target)
        assert bool(problems) == (not encoder and target != "mlx"), target
        assert all(problem.startswith(f"siglip.image_size={size}") for problem in problems)
    own = {"torch": 448, "mlx": 448, "candle": 224}
    for target, resized in own.items():
        told = [
            note for note in deviations.deviations(model, target) if "resizes images to" in note
        ]
        if encoder or target == "mlx":
            assert len(told) == (size != resized), target
            assert all(f"to {resized} pixels unless" in note for note in told)
    use = {t: serving.text(model, t, None) for t in targets.TARGETS}
    assert f"--img_size {size}" in use["mlx"]
    asked = f"/api/chat?xa_start=0&image_resolution={size}"
    assert f"    ws://HOST:8088{asked}\n" in use["torch"]
    assert f"    wss://HOST:8008{asked}\n" in use["candle"] and "gets 224 pixels" in use["candle"]
    assert asked in " ".join(deviations.deviations(model, "candle"))
    if encoder:
        assert runtime_configs.candle_config(model)[runtime_configs.OWN]["client_asks"] == asked


def test_a_late_scope_is_the_servers_alone():
    """In the YAML it would be counted twice: layers count from the first frame that sees."""
    late, some = (exported.with_adapters(scope=scopes.Scope(3, n)) for n in (None, 5))
    for model in (late, some):
        told = runtime_configs.torch_config(model)
        assert (told["xa_start"], told[runtime_configs.TORCH_START]) == (0, 3)
        assert "unless the client's URL says xa_start" in " ".join(
            deviations.deviations(model, "torch")
        )
        whole = schema.ModelConfig(cross_attention=model.cross_attention)
        assert "xa_start=3" in serving.text(whole, "torch", None)
    assert runtime_configs.TORCH_START not in runtime_configs.torch_config(TOY)
    whole = schema.ModelConfig(cross_attention=late.cross_attention)
    assert "--xa-start 4 " in serving.text(whole, "mlx", None)
    at_once = serving.text(schema.ModelConfig(), "mlx", "q8")
    assert "--xa-start 0 " in at_once and "server --moshi-weights model.q8.safetensors" in at_once
    asked = "/api/chat?xa_start=3&image_resolution=448"
    assert asked in serving.text(whole, "candle", None)
    assert "/api/chat" not in " ".join(deviations.deviations(late, "candle"))  # it builds no toy
    assert asked in " ".join(deviations.deviations(whole, "candle"))


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_card_names_no_server_that_cannot_run_the_model(target):
    text = serving.text(TOY, target, None)
    assert text.startswith("Not by") and "MOSHIVIS" not in text and "/api/chat" not in text
    assert any("own runtimes only" in note for note in deviations.deviations(TOY, target))
    assert serving.text(schema.ModelConfig(), target, None).startswith("By ")


def test_what_servers_do_not_read_is_told():
    shown = dataclasses.replace(TOY, text_pad=5)
    for target, told in {"torch": True, "mlx": True, "candle": False}.items():
        assert (
            "every text token but 0 and 3" in " ".join(deviations.deviations(shown, target))
        ) == told
    assert "takes 8 from its codec" in " ".join(deviations.deviations(TOY, "torch"))


def test_messages_cite_no_document_that_is_not_here():
    """Docstrings and comments may, as the glossary says; what people see may not."""
    cited = re.compile(r"\breference (section|notes|\d)|design\.md|moshivis\.md|peers\.md", re.I)
    for path in sorted(ROOT.rglob("*.py")):
        module = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        notes = {
            ast.get_docstring(n, clean=False) for n in ast.walk(module) if isinstance(n, documented)
        }
        for node in ast.walk(module):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value not in notes
            ):
                assert not cited.search(node.value), f"{path}:{node.lineno}"


@pytest.mark.parametrize("target", targets.TARGETS)
def test_the_card_leads_to_the_section_on_serving(target):
    (title, path) = re.findall(
        r'"(Serve .*)" in\s`(.*)` of mvjax', serving.text(schema.ModelConfig(), target, None)
    )[0]
    section = (ROOT.parent / path).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    for told in (
        "Run inside the folder", "model_pt.safetensors", "--xa-start", "xa_start=16", "--static",
        "--ssl False", "cert.pem", "CUDA", "--img_size", "image_resolution",
    ):  # fmt: skip
        assert told in section, told
