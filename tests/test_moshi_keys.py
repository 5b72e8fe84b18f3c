"""Kyutai's config.json: what each key sets, and what is refused, by key and in one line."""

import contextlib
import inspect
import json
import operator

import families
import pytest

from mvjax.config import moshi_keys, schema

WRONG = {  # {key: (value, the reason given)}
    "positional_embedding": ("sin_rope", "only rotary positions"),
    "gating": ("none", "only the gated SiLU"),
    "norm": ("layer_norm", "no other norm is built"),
    "layer_scale": (0.01, "no layer scale"),
    "causal": (False, "attention is causal"),
    "norm_emb": (True, "embeddings are not normed"),
    "bias_proj": (True, "no projection has a bias"),
    "kv_repeat": (2, "its own keys and values"),
    "context": (None, "expected an integer"),
    "max_period": ("10000", "expected a number"),
    "delays": ([0, 1], "each of n_q = 16 streams"),
    "dep_q": (-1, "some of the n_q = 16"),
    "text_card_out": (40, "one vocabulary"),
    "demux_second_stream": (True, "one text stream"),
    "extra_heads_num_heads": (4, "no extra heads"),
    "cross_attention": (True, "no condition"),
    "conditioners": ({"description": {}}, "no condition"),
    "depformer_multi_linear": (False, "its own weights"),
    "depformer_weights_per_step": (False, "its own weights"),
    "depformer_weights_per_step_schedule": ([0, 1, 2, 3, 4, 4, 4, 4], "its own weights"),
    "depformer_low_rank_embeddings": (128, "one matrix"),
    "depformer_pos_emb": ("sin", "have no positions"),
    "depformer_norm": ("rms_norm_f32", "no norm before their heads"),
    "depformer_gating": ("gelu", "only the gated SiLU"),
    "depformer_kv_repeat": (2, "its own keys and values"),
    "depformer_context": (4, "attends to all before it"),
    "depformer_dim_feedforward": ([66] * 7 + [60], "of one width"),
    "mimi_config_name": ("mimi.json", "set frozen.codec"),
    "moshi_name": ("../../elsewhere/model.safetensors", "a file beside the config"),
    "mimi_name": ("/etc/mimi.safetensors", "a file beside the config"),
    "tokenizer_name": ("file:///etc/passwd", "a file beside the config"),
    "lora_name": (5, "a file beside the config"),
    "oracle_emb": (True, "no field for this key"),
    "attention_sink": (4, "no field for this key"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_key_that_cannot_be_honored_is_refused_by_name(key):
    value, reason = WRONG[key]
    with pytest.raises(
        ValueError, match=rf"^config: 1 key describes .*\n  {key}: .*{reason}"
    ) as error:
        moshi_keys.read(families.KYUTAI | {key: value}, place="config")
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("key", ["positional_embedding", "depformer_pos_emb", "gating", "norm"])
def test_an_absent_key_means_what_the_moshi_package_takes(key):
    given = {k: v for k, v in families.KYUTAI.items() if k != key}
    with pytest.raises(ValueError, match=rf"\n  {key}: absent, which means '"):
        moshi_keys.read(given, place="config")


@pytest.mark.parametrize(
    "odd", [None, True, -1, 0, 1.5, 10**400, float("inf"), "x", "", [], [1], [[]], {}, {"a": 1}]
)
def test_any_value_is_read_or_refused(odd):
    for key in moshi_keys.TABLE:
        with contextlib.suppress(ValueError):
            moshi_keys.read(families.KYUTAI | {key: odd}, place="config")


def test_every_key_of_the_moshi_package_is_in_the_table():
    lm = pytest.importorskip("moshi.models.lm")
    transformer = pytest.importorskip("moshi.modules.transformer")
    own = {"self", "kwargs", "device", "dtype", "condition_provider", "demux_second_text_stream"}
    keys = set(inspect.signature(lm.LMModel.__init__).parameters) - own
    assert keys <= moshi_keys.TABLE.keys()
    inner = {
        "layer_scale",
        "gating",
        "kv_repeat",
        "positional_embedding",
        "max_period",
        "num_layers",
    }
    parameters = [
        inspect.signature(kind.__init__).parameters
        for kind in (transformer.StreamingTransformer, transformer.StreamingTransformerLayer)
    ]
    for key in inner & keys:
        row = moshi_keys.TABLE[key]
        defaults = [p[key].default for p in parameters if key in p]
        assert row.default in defaults or inspect.Parameter.empty in defaults, key
    for key in keys - {"fuser"}:
        default = inspect.signature(lm.LMModel.__init__).parameters[key].default
        ignored = {"quantize", "extra_heads_dim", "gradient_checkpointing"}
        assert key in ignored or moshi_keys.TABLE[key].default == default, key


def test_other_models_of_the_family_are_refused_in_one_line():
    for name, config in families.REFUSED.items():
        kind = name.split("-")[0]
        with pytest.raises(
            ValueError, match=rf"^config\.json: model_type '{kind}': a .*; take a"
        ) as e:
            moshi_keys.read(config, place="config.json")
        assert "\n" not in str(e.value)
    bare = {k: v for k, v in families.REFUSED["stt-2.6b-en"].items() if k != "model_type"}
    with pytest.raises(ValueError, match="has no depth transformer and cannot speak"):
        moshi_keys.read(bare, place="config.json")
    with pytest.raises(
        ValueError, match=r"personaplex', version '8b-v2': expected.*personaplex-7b"
    ):
        moshi_keys.read(families.PERSONAPLEX | {"version": "8b-v2"}, place="config.json")


def test_a_preset_gives_way_to_sizes_in_the_file():
    preset = moshi_keys.read(families.PERSONAPLEX, place="config")
    assert not preset.stated and preset.fields["codebooks_out"] == ("personaplex", 8)
    sized = families.PERSONAPLEX | {"dep_q": 16, "depformer_context": 16}
    whole = moshi_keys.read(families.LM_KWARGS | sized, place="config")
    assert whole.stated and whole.fields["backbone.width"] == ("dim", 24)
    assert whole.fields["codebooks_out"] == ("dep_q", 8)
    with pytest.raises(ValueError, match="positional_embedding: absent"):
        moshi_keys.read(families.PERSONAPLEX | {"max_period": 100000}, place="config")
    with pytest.raises(
        ValueError, match=r"1 key describes.*\n  moshi_name: .*expected a file beside"
    ):
        moshi_keys.read(families.PERSONAPLEX | {"moshi_name": "/x"}, place="config")
    files = moshi_keys.read({"mimi_name": "m.safetensors"}, place="config")
    assert (files.fields, files.stated, files.names["codec"]) == ({}, False, "m.safetensors")


def test_the_published_sizes_are_the_defaults():
    keys = moshi_keys.read(json.loads(FULL), place="configs/moshi_7b_202409.json")
    for path, (_, value) in keys.fields.items():
        assert operator.attrgetter(path)(schema.ModelConfig()) == value, path
    assert keys.stated and keys.names.keys() == {"codec", "tokenizer"}


FULL = """{
    "dim": 4096, "text_card": 32000, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": 2048,
    "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "causal": true, "layer_scale": null,
    "context": 3000, "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32",
    "positional_embedding": "rope", "depformer_dim": 1024, "depformer_dim_feedforward": 4224,
    "depformer_num_heads": 16, "depformer_num_layers": 6, "depformer_causal": true,
    "depformer_layer_scale": null, "depformer_multi_linear": true, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": true, "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
}"""
