"""Kyutai's `config.json` key by key: which field of ModelConfig a key sets, or which values it may have.

Keys, and what their absence means, are those of moshi 0.2.13: `models/loaders.py`, and `LMModel` and
`StreamingTransformer` below it. `moshi_lm_kwargs.json` of nu-dialogue/moshi-finetune has the second half.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

from mvjax import messages
from mvjax.config import schema

CODEC = "tokenizer-e351c8d8-checkpoint125.safetensors"  # Kyutai's names where a config has none
TOKENIZER = "tokenizer_spm_32k_3.model"

# {model_type-version: sizes} of models whose config.json names none
PRESETS: Mapping[str, schema.ModelConfig] = {
    # NVIDIA/personaplex, moshi/models/loaders.py: Moshi's, but for 16 depth steps
    "personaplex-7b-v1": schema.ModelConfig(),
}
# {model_type: why it is no backbone here}
_OTHER_USES = {
    "hibiki": "a speech translator; it translates what it hears and holds no dialogue",
    "tts": "a text-to-speech model; it reads a text aloud and does not listen",
    "stt": "a speech-to-text model; it has no depth transformer and cannot speak",
}
_REMEDY = "take a dialogue model, such as hf://kyutai/moshika-pytorch-bf16"
_NORM_EPS = {"rms_norm_f32": 1e-8, "rms_norm": 1e-5}
_MISSING: Any = object()

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class MoshiKeys:
    """What a config.json says.

    Attributes:
      fields: {path below ModelConfig: (key, value)}.
      stated: whether the file itself names them; else they are a preset's.
      names: {field of FrozenFiles: file beside the config, or its hf:// location}.
    """

    fields: Mapping[str, tuple[str, Any]]
    stated: bool
    names: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class _Field:
    """A key that sets fields.

    Attributes:
      paths: below ModelConfig.
      default: of an absent key.
      convert: (value, all values) -> value of the fields; ValueError says what is expected.
    """

    paths: tuple[str, ...]
    default: Any
    convert: Callable[[Any, Values], Any]


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """A key without a field.

    Attributes:
      default: of an absent key.
      allowed: whether a value is computed here.
      reason: why others are refused.
    """

    default: Any
    allowed: Callable[[Any, Values], bool]
    reason: str = ""


def _only(*values: Any, reason: str, default: Any = _MISSING) -> _Fixed:
    default = values[0] if default is _MISSING else default
    return _Fixed(default, lambda value, _: value in values, reason)


def _ignored(default: Any = None) -> _Fixed:
    return _Fixed(default, lambda value, _: True)


def _number(kind: type[int] | type[float]) -> Callable[[Any, Values], Any]:
    def convert(value: Any, _: Values) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
            raise ValueError("expected an integer" if kind is int else "expected a number")
        return kind(value)

    return convert


_INTEGER, _FLOAT = _number(int), _number(float)


def _hidden(feedforward: Any, width: Any) -> int:
    """Units of each half of the gated MLP; source: moshi/modules/gating.py, `ActivationGating`."""
    feedforward, width = _INTEGER(feedforward, {}), _INTEGER(width, {})
    return 21 * width // 8 if feedforward == 4 * width else 2 * feedforward // 3


def _backbone_hidden(scale: Any, values: Values) -> int:
    return _hidden(int(_FLOAT(scale, {}) * _INTEGER(values["dim"], {})), values["dim"])


def _depth_hidden(feedforward: Any, values: Values) -> int:
    width = values["depformer_dim"]
    if feedforward is None:
        feedforward = int(_FLOAT(values["hidden_scale"], {}) * _INTEGER(width, {}))
    if isinstance(feedforward, list):
        if len(set(feedforward)) != 1:
            raise ValueError("depth steps of one width are built")
        feedforward = feedforward[0]
    return _hidden(feedforward, width)


def _delays(delays: Any, values: Values) -> tuple[int, ...]:
    if not isinstance(delays, list) or len(delays) != 1 + _INTEGER(values["n_q"], {}):
        raise ValueError(f"expected a delay for the text and each of n_q = {values['n_q']} streams")
    return tuple(_INTEGER(delay, {}) for delay in delays)


def _generated(steps: Any, values: Values) -> int:
    """The assistant's codebooks: all depth steps, or the first half if the rest predicts the user's."""
    steps, streams = _INTEGER(steps, {}), _INTEGER(values["n_q"], {})
    if steps == streams and streams % 2 == 0:
        return streams // 2
    if not 0 < steps < streams:
        raise ValueError(f"expected some of the n_q = {streams} audio streams, or all")
    return steps


def _eps(norm: Any, _: Values) -> float:
    if norm not in _NORM_EPS:
        raise ValueError(f"expected one of {list(_NORM_EPS)}: no other norm is built")
    return _NORM_EPS[norm]


def _sees_all(context: Any, values: Values) -> bool:
    steps, streams = values["dep_q"], values["n_q"]
    return context is None or context >= (streams // 2 if steps == streams else steps)


def _in_order(schedule: Any, values: Values) -> bool:
    return schedule is None or schedule == list(range(values["dep_q"]))


def _is_name(name: Any) -> bool:
    """Whether it is a file beside the config or on the hub, and no way to another place of this machine."""
    if not isinstance(name, str) or not name or "\\" in name:
        return False
    return name.startswith("hf://") or not (name.startswith(("/", "file:")) or ".." in name)


_NAME = "expected a file beside the config, or an hf:// location"
_OWN_CODEC = "a codec of other sizes: leave the key out, set frozen.codec and the fields of `codec`"
_STEP_WEIGHTS = "each depth step has its own weights here"
_NO_CONDITION = "no condition enters the backbone here"
_ROPE = "only rotary positions with interleaved pairs are built"
_SILU = "only the gated SiLU is built"
_ONE_TEXT = "one text stream with one vocabulary is built"

TABLE: Mapping[str, _Field | _Fixed] = {
    "dim": _Field(("backbone.width",), 128, _INTEGER),
    "num_layers": _Field(("backbone.layers",), _MISSING, _INTEGER),
    "num_heads": _Field(("backbone.heads",), 8, _INTEGER),
    "hidden_scale": _Field(("backbone.hidden",), 4, _backbone_hidden),
    "context": _Field(("backbone.context",), None, _INTEGER),
    "max_period": _Field(("backbone.rope_base",), 10_000, _FLOAT),
    "norm": _Field(("backbone.norm_eps", "depformer.norm_eps"), "layer_norm", _eps),
    "text_card": _Field(("text_vocab",), 32_000, _INTEGER),
    "existing_text_padding_id": _Field(("text_pad",), 3, _INTEGER),
    "existing_text_end_padding_id": _Field(("text_epad",), 0, _INTEGER),
    "card": _Field(("audio_vocab",), 1024, _INTEGER),
    "n_q": _Fixed(8, lambda n, _: isinstance(n, int), "expected an integer"),  # sets len(delays)
    "dep_q": _Field(("codebooks_out",), 8, _generated),
    "delays": _Field(("delays",), [0], _delays),
    "depformer_dim": _Field(("depformer.width",), 256, _INTEGER),
    "depformer_num_layers": _Field(("depformer.layers",), _MISSING, _INTEGER),
    "depformer_num_heads": _Field(("depformer.heads",), _MISSING, _INTEGER),
    "depformer_dim_feedforward": _Field(("depformer.hidden",), None, _depth_hidden),
    # what is computed in one way here
    "causal": _only(True, reason="attention is causal here"),
    "gating": _only("silu", default="none", reason=_SILU),
    "positional_embedding": _only("rope", default="sin", reason=_ROPE),
    "layer_scale": _only(None, reason="no layer scale is built"),
    "norm_emb": _only(False, None, reason="embeddings are not normed here"),
    "bias_proj": _only(False, None, reason="no projection has a bias"),
    "kv_repeat": _only(1, reason="every head has its own keys and values here"),
    "text_card_out": _Fixed(
        None, lambda n, values: n in (None, values["text_card"]), "text has one vocabulary here"
    ),
    "demux_second_stream": _only(False, None, reason=_ONE_TEXT),
    "demux_second_text_stream": _only(False, None, reason=_ONE_TEXT),
    "extra_heads_num_heads": _only(0, reason="no extra heads are built"),
    "cross_attention": _only(False, None, reason=_NO_CONDITION),
    "conditioners": _only(None, {}, reason=_NO_CONDITION),
    "depformer_multi_linear": _only(True, default=False, reason=_STEP_WEIGHTS),
    "depformer_weights_per_step": _only(True, default=False, reason=_STEP_WEIGHTS),
    "depformer_weights_per_step_schedule": _Fixed(None, _in_order, _STEP_WEIGHTS),
    "depformer_low_rank_embeddings": _only(None, reason="embeddings are one matrix here"),
    "depformer_gating": _only("silu", reason=_SILU),
    "depformer_pos_emb": _only("none", default="sin", reason="depth steps have no positions here"),
    "depformer_norm": _only(None, reason="depth steps have no norm before their heads here"),
    "depformer_layer_scale": _only(None, reason="no layer scale is built"),
    "depformer_kv_repeat": _only(1, reason="every head has its own keys and values here"),
    "depformer_causal": _only(True, reason="attention is causal here"),
    "depformer_context": _Fixed(None, _sees_all, "a depth step attends to all before it here"),
    "mimi_config_name": _only(None, reason=_OWN_CODEC),
    # what changes nothing in what is computed from the weights
    **dict.fromkeys(
        ("depformer_max_period", "extra_heads_dim", "fuser", "quantize", "gradient_checkpointing"),
        _ignored(),
    ),
    **dict.fromkeys(("lm_gen_config", "tts_config", "stt_config", "model_id"), _ignored()),
    **dict.fromkeys(("model_type", "version"), _ignored()),
    **dict.fromkeys(("lora", "lora_rank", "lora_scaling"), _ignored()),  # weights/lora.py
    **dict.fromkeys(
        ("moshi_name", "mimi_name", "tokenizer_name", "lora_name"),
        _Fixed(None, lambda name, _: name is None or _is_name(name), _NAME),
    ),
}


def read(raw: Values, *, place: str) -> MoshiKeys:
    """Returns what a config.json says.

    Args:
      raw: its content.
      place: its path, for messages.

    Raises:
      ValueError: with one line for a model of another use, or one for each key that cannot be honored.
    """
    kind, version = str(raw.get("model_type") or _use(raw)), raw.get("version")
    if kind in _OTHER_USES:
        raise ValueError(f"{place}: model_type {kind!r}: {_OTHER_USES[kind]}; {_REMEDY}")
    sized = any(isinstance(TABLE.get(key), _Field) for key in raw)
    preset = PRESETS.get(f"{kind}-{version}")
    known = kind == "moshi" or (sized and kind in (name.split("-")[0] for name in PRESETS))
    if preset is None and (version is not None or not known):
        raise ValueError(
            f"{place}: model_type {kind!r}, version {version!r}: expected 'moshi' without a version,"
            f" or one of {list(PRESETS)}; {_REMEDY}"
        )
    fields, problems = _fields(raw, sized=sized)
    _refuse(problems, place)
    if preset is not None and not sized:
        rows = (row for row in TABLE.values() if isinstance(row, _Field))
        paths = [path for row in rows for path in row.paths]
        fields = {path: (kind, operator.attrgetter(path)(preset)) for path in paths}
    return MoshiKeys(fields, stated=sized, names=_names(raw))


def _use(raw: Values) -> str:
    """The model_type of a config without one."""
    if raw.get("tts_config"):
        return "tts"
    return "stt" if raw.get("stt_config") or raw.get("dep_q") == 0 else "moshi"


def _names(raw: Values) -> dict[str, str]:
    """Files by field of FrozenFiles; codec and tokenizer have names of their own where none is given."""
    named = {"codec": raw.get("mimi_name") or CODEC}
    named["tokenizer"] = raw.get("tokenizer_name") or TOKENIZER
    if raw.get("moshi_name"):
        named["moshi"] = raw["moshi_name"]
    if raw.get("lora") and raw.get("lora_name"):
        named["moshi_lora"] = raw["lora_name"]
    return named


def _fields(raw: Values, *, sized: bool) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """Returns the fields that the keys set, and one line for each key that cannot be honored.

    Without a size among them only the keys that are there count: such a config names files.
    """
    values = {key: raw.get(key, row.default) for key, row in TABLE.items()}
    fields: dict[str, tuple[str, Any]] = {}
    problems = [f"{key}: mvjax has no field for this key" for key in raw if key not in TABLE]
    for key, row in TABLE.items():
        if key not in raw and not sized:
            continue
        value = values[key]
        try:
            if value is _MISSING:
                raise ValueError("no value")
            if isinstance(row, _Field):
                converted = row.convert(value, values)
                fields |= {path: (key, converted) for path in row.paths}
            elif not row.allowed(value, values):
                raise ValueError(row.reason)
        except (ValueError, TypeError, OverflowError) as error:
            shown = "missing" if value is _MISSING else repr(value)
            absent = "" if key in raw or value is _MISSING else "absent, which means "
            problems.append(f"{key}: {absent}{shown}: {error}")
    return fields, problems


def _refuse(problems: list[str], place: str) -> None:
    if problems:
        raise ValueError(
            f"{place}: {messages.counted(len(problems), 'key describes', 'keys describe')}"
            " a model that mvjax does not build:"
            + messages.lines(problems)
            + "\nIf this is another program's file, put the weights into a folder of their own."
        )
