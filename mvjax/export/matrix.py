"""The compatibility matrix: which designs each upstream runtime can run, and why not (data only).

`targets.refusals` applies it to a config, `targets.table` prints it. The facts are those of the reference
model's code: sections 1.5, 2.2, 2.6, 2.7 and 4.2 - 5.5 of the reference notes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from mvjax import gates, scopes
from mvjax.config import schema

Model = schema.ModelConfig

NORM_EPS = 1e-8  # of every norm but the image's, in all runtimes
# kyuteye_pt: {(kind, eps): name}
TORCH_NORMS: dict[tuple[schema.NormKind, float], str] = {
    ("variance", 1e-5): "rms_norm",
    ("variance", 1e-8): "rms_norm_f32",
    ("mean_square", 1e-5): "real_rms_norm",
    ("mean_square", 1e-8): "real_rms_norm_f32",
}


@dataclasses.dataclass(frozen=True)
class DesignChoice:
    """One row: a choice that a design makes, and what the targets make of it."""

    choice: str  # its name in `mvjax export --list`
    fields: tuple[str, ...]  # paths below ModelConfig that make the choice, for messages
    made_by: Callable[[Model], bool]
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)  # {target: why}
    remedy: str = ""
    # {target: what it computes instead, or how it has to be started}
    nearly: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _of(*targets: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(targets, reason)


def _all(reason: str) -> dict[str, str]:
    return _of("torch", "mlx", "candle", reason=reason)


def _gate(model: Model) -> gates.Gate | None:
    return model.cross_attention.gate


def _conditional(activation: gates.Activation, *, bias: bool = False) -> Callable[[Model], bool]:
    """Returns whether a model has such a conditional gate, of any hidden width."""

    def made_by(model: Model) -> bool:
        gate = _gate(model)
        wanted = (activation, bias)
        return isinstance(gate, gates.Conditional) and (gate.activation, gate.bias) == wanted

    return made_by


def _other_gate(model: Model) -> bool:
    return type(_gate(model)) not in (type(None), gates.Constant, gates.Conditional)


def _other_gate_width(model: Model) -> bool:
    gate = _gate(model)
    return isinstance(gate, gates.Conditional) and gate.hidden != int(0.125 * model.backbone.width)


def _looking(model: Model) -> tuple[bool, bool]:
    """Whether all layers look at the image, and whether layer 0 does."""
    chosen = model.cross_attention_layers
    return len(chosen) == model.backbone.layers, 0 in chosen


def _image_norm(model: Model) -> tuple[schema.NormKind, float]:
    return model.cross_attention.image_norm, model.cross_attention.image_norm_eps


def _delays(model: Model) -> tuple[bool, bool]:
    """Whether the assistant's delays are 0 1 1 .., and whether all acoustic delays are equal."""
    own, users = model.codebooks_out, model.codebooks - 1 - model.codebooks_out
    late = max(model.delays)
    by_one = model.delays[: 1 + own] == (0, 0, *[1] * (own - 1))
    return by_one, model.delays == (0, *(0, *[late] * own)[:own], *(0, *[late] * users)[:users])


_GATE = ("cross_attention.gate",)
_SHARE = ("cross_attention.share",)
_LAYERS = ("cross_attention.layers",)
_DIM = ("cross_attention.dim", "backbone.width")
_SCOPE = ("cross_attention.scope",)
_NORM = ("cross_attention.image_norm", "cross_attention.image_norm_eps")

_MLX_GATE = {"mlx": "the conditional sigmoid gate is the only one it builds"}
_TO_CONDITIONAL = "retrain with gates.Conditional() or gate=None, or export to torch or candle"
_NO_BIAS = _of(
    "torch", "mlx", reason="no gate has a bias: sigmoid logits are shifted by 4, a constant"
)
_TO_UNBIASED = "retrain with bias=False, or export to candle"
_EVERY_LAYER = "every layer has cross-attention, and no config can change that"
_NO_END = _of("mlx", "candle", reason="the start of vision can be set, its end cannot")
_SERVED_NORM = _of("mlx", "candle", reason="image tokens are normed by their mean square, eps 1e-8")
_DEPTH_NORM = _of("mlx", "candle", reason="it computes the mean square")
_MLX_DELAYS = {"mlx": "the assistant's first codebook has delay 0 and all others have delay 1"}
_CANDLE_DELAYS = {"candle": "the assistant's and the user's acoustic codebooks have the same delay"}

MATRIX: tuple[DesignChoice, ...] = (
    DesignChoice("gate: none", _GATE, lambda m: _gate(m) is None),
    DesignChoice(
        "gate: constant tanh", _GATE, lambda m: _gate(m) == gates.Constant("tanh"),
        _MLX_GATE, _TO_CONDITIONAL,
    ),
    DesignChoice(
        "gate: constant sigmoid", _GATE, lambda m: _gate(m) == gates.Constant("sigmoid"),
        _MLX_GATE, _TO_CONDITIONAL,
    ),
    DesignChoice(
        "gate: conditional tanh", _GATE, _conditional("tanh"), _MLX_GATE, _TO_CONDITIONAL
    ),
    DesignChoice("gate: conditional sigmoid (release)", _GATE, _conditional("sigmoid")),
    DesignChoice(
        "gate: conditional tanh, learned bias", _GATE, _conditional("tanh", bias=True),
        _NO_BIAS, _TO_UNBIASED,
    ),
    DesignChoice(
        "gate: conditional sigmoid, learned bias", _GATE, _conditional("sigmoid", bias=True),
        _NO_BIAS, _TO_UNBIASED,
    ),
    DesignChoice(
        "gate: conditional, hidden not width / 8", (*_GATE, "backbone.width"), _other_gate_width,
        _all("gates are built with hidden = int(0.125 x backbone.width)"),
        "retrain with Conditional(hidden=int(0.125 x backbone.width))",
    ),
    DesignChoice(
        "gate: any other", _GATE, _other_gate, _all("it has no such gate"),
        "retrain with a gate of `mvjax export --list`, or teach its runtime and its config file",
    ),
    DesignChoice(
        "gate: shared by all layers, with an alpha each", ("cross_attention.share_gate",),
        lambda m: _gate(m) is not None and m.cross_attention.share_gate,
        _of("mlx", "candle", reason="each layer has its own gate, and there is no alpha"),
        "retrain with share_gate=False, or export to torch",
    ),
    DesignChoice("share: qkv (release)", _SHARE, lambda m: m.cross_attention.share == "qkv"),
    DesignChoice(
        "share: kv", _SHARE, lambda m: m.cross_attention.share == "kv",
        _all("no layer has its own queries beside shared keys and values"),
        "retrain with share='qkv'",
    ),
    DesignChoice(
        "share: none", _SHARE, lambda m: m.cross_attention.share == "none",
        _all("keys and values are computed once, with layer 0's weights, for all layers"),
        "retrain with share='qkv'",
    ),
    DesignChoice("layers: all look (release)", _LAYERS, lambda m: _looking(m) == (True, True)),
    DesignChoice(
        "layers: some look, the first among them", _LAYERS, lambda m: _looking(m) == (False, True),
        {"mlx": _EVERY_LAYER, "candle": _EVERY_LAYER},
        "retrain with layers=(), or export to torch",
    ),
    DesignChoice(
        "layers: some look, not the first", _LAYERS, lambda m: _looking(m) == (False, False),
        {
            "torch": "its server takes keys and values from layer 0's cross-attention",
            "mlx": _EVERY_LAYER,
            "candle": _EVERY_LAYER,
        },
        "retrain with layers that begin with 0",
    ),
    DesignChoice(
        "image tokens: as wide as the backbone (release)", _DIM,
        lambda m: m.image_width == m.backbone.width,
    ),
    DesignChoice(
        "image tokens: of another width", _DIM, lambda m: m.image_width != m.backbone.width,
        {"mlx": "keys and values are made of tokens as wide as the backbone"},
        "retrain with dim=None, or export to torch or candle",
    ),
    DesignChoice(
        "image projection: none, features are as wide as tokens", (*_DIM, "siglip.width"),
        lambda m: not m.projects_image,
        {"mlx": "image features always go through proj_xa"},
        "retrain with another dim, or export to torch or candle",
    ),
    DesignChoice(
        "scope: all frames (release)", _SCOPE, lambda m: m.cross_attention.scope == scopes.Scope()
    ),
    DesignChoice(
        "scope: from a frame on", _SCOPE,
        lambda m: m.cross_attention.scope.start > 0 and m.cross_attention.scope.frames is None,
        nearly={
            "mlx": "not read from a file: start the server with --xa-start",
            "candle": "not read from a file: the client sends xa_start",
        },
    ),
    DesignChoice(
        "scope: so many frames", _SCOPE, lambda m: m.cross_attention.scope.frames is not None,
        _NO_END, "retrain with frames=None, or export to torch",
    ),
    DesignChoice(
        "image norm: variance, eps 1e-5 (release)", _NORM,
        lambda m: _image_norm(m) == ("variance", 1e-5), nearly=_SERVED_NORM,
    ),
    DesignChoice(
        "image norm: mean square, eps 1e-8", _NORM,
        lambda m: _image_norm(m) == ("mean_square", 1e-8),
    ),
    DesignChoice(
        "image norm: another", _NORM,
        lambda m: _image_norm(m) not in {("variance", 1e-5), ("mean_square", 1e-8)},
        nearly=_SERVED_NORM,
    ),
    DesignChoice(
        "image norm: an eps that is not 1e-5 or 1e-8", _NORM,
        lambda m: _image_norm(m) not in TORCH_NORMS,
        {"torch": "norms have eps 1e-5 or 1e-8"}, "retrain with one of these",
    ),
    DesignChoice(
        "depth transformer norm: mean square (release)", ("depformer.norm",),
        lambda m: m.depformer.norm == "mean_square",
    ),
    DesignChoice(
        "depth transformer norm: variance", ("depformer.norm",),
        lambda m: m.depformer.norm == "variance", _DEPTH_NORM,
        "set depformer.norm='mean_square', which the frozen weights were trained with",
    ),
    DesignChoice(
        "norm eps: not 1e-8", ("backbone.norm_eps", "depformer.norm_eps"),
        lambda m: {m.backbone.norm_eps, m.depformer.norm_eps} != {NORM_EPS},
        _all("1e-8 is built in"), "retrain with 1e-8",
    ),
    DesignChoice("delays: 0, then 1 (release)", ("delays",), lambda m: _delays(m) == (True, True)),
    DesignChoice(
        "delays: 0, then another for all", ("delays",), lambda m: _delays(m) == (False, True),
        _MLX_DELAYS, "use delays of 1, or export to torch or candle",
    ),
    DesignChoice(
        "delays: others for the user only", ("delays",), lambda m: _delays(m) == (True, False),
        _CANDLE_DELAYS, "use delays of 1, or export to torch or mlx",
    ),
    DesignChoice(
        "delays: several for the assistant", ("delays",), lambda m: _delays(m) == (False, False),
        {**_MLX_DELAYS, **_CANDLE_DELAYS}, "use delays of 1, or export to torch",
    ),
)  # fmt: skip

_NO_QUANTIZED = {"torch": "kyuteye_pt loads no quantized weights"}
# {quantization of a weight file: {target: why it cannot read it}}
QUANTIZED: dict[str, Mapping[str, str]] = {
    "q8": {**_NO_QUANTIZED, "candle": "kyuteye_rs reads q8_0"},
    "q4": {**_NO_QUANTIZED, "candle": "kyuteye_rs reads q8_0"},
    "q8_0": {**_NO_QUANTIZED, "mlx": "kyuteye_mlx reads what nn.quantize makes: q8 or q4"},
}
