"""The compatibility matrix, the notes on what it lets pass, and the runtimes' config files."""

import dataclasses
import re

import exported
import pytest
import yaml

from mvjax import gates, scopes
from mvjax.config import schema
from mvjax.export import deviations, matrix, runtime_configs, targets

TOY = exported.TOY
KINDS = (
    "gate", "share", "layers", "image tokens", "scope", "image norm", "depth transformer norm",
    "delays",
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
        (0, 0, 1, 1, 0, 2): ["candle"],
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
        "gate:", "yes", "no", "yes",
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
        assert "sizes of the released model" not in notes[target]
    toy = " ".join(deviations.deviations(TOY, "candle"))
    assert "So400m" in toy and "sizes of the released model" in toy


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
    """A gate that no runtime has."""


def test_a_gate_that_no_runtime_has_is_refused_by_name():
    xa = dataclasses.replace(TOY.cross_attention, gate=Film())
    model = dataclasses.replace(TOY, cross_attention=xa)
    for target in targets.TARGETS:
        assert any("Film" in problem for problem in targets.refusals(model, target))
