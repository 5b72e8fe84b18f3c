"""The compatibility matrix: which designs and file formats each upstream runtime can run, and why not.

A runtime refuses a model if any line of the matrix that the model's config falls under does.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from mvjax import gates, scopes
from mvjax.config import schema
from mvjax.export import designs
from mvjax.weights import file_names

Target = Literal["torch", "mlx", "candle"]
Quantization = Literal["q8", "q4", "q8_0"]

TARGETS: tuple[Target, ...] = get_args(Target)
UPSTREAM: dict[Target, str] = {"torch": "kyuteye_pt", "mlx": "kyuteye_mlx", "candle": "kyuteye_rs"}

NORM_EPS = 1e-8  # of every norm but the image's, in all runtimes
# kyuteye_pt: {(kind, eps): name}; reference section 2.2
TORCH_NORMS: dict[tuple[schema.NormKind, float], str] = {
    ("variance", 1e-5): "rms_norm",
    ("variance", 1e-8): "rms_norm_f32",
    ("mean_square", 1e-5): "real_rms_norm",
    ("mean_square", 1e-8): "real_rms_norm_f32",
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One choice of a design.

    Attributes:
      choice: what `mvjax export --list` calls it.
      fields: paths below ModelConfig that make the choice, for messages.
      made_by: whether a model makes it.
      refused: why a target cannot run it; a target that is not named can.
      remedy: for whoever meets a refusal.
      nearly: what a target makes of it that can run it in another way only.
    """

    choice: str
    fields: tuple[str, ...]
    made_by: Callable[[schema.ModelConfig], bool]
    refused: Mapping[Target, str] = dataclasses.field(default_factory=dict)
    remedy: str = ""
    nearly: Mapping[Target, str] = dataclasses.field(default_factory=dict)


_MLX_GATE = "no gate but the conditional sigmoid one is ever built there (reference 1.5, 2.6)"
_NO_BIAS = "no gate has a bias there: sigmoid logits are shifted by 4 (reference 2.6)"
_EVERY_LAYER = (
    "every layer has cross-attention there, and nothing says otherwise (reference 4.5, 4.6)"
)
_WIDTH = "gates are built with hidden = int(0.125 x backbone.width) (reference 2.6)"
_LAYER_0 = (
    "keys and values are computed once, with layer 0's weights, for all layers (reference 5.4)"
)
_EPS = "1e-8 is built in (reference 2.2)"
_NO_END = "vision has no end there: only its start can be told (reference 2.7)"
_LEVELS = (
    "of the assistant's levels the first has delay 0 and all others 1 there (reference 5.2, 5.3)"
)
_ACOUSTIC = "one acoustic delay holds for the assistant and the user there (reference 1.5)"


def _all(reason: str) -> dict[Target, str]:
    return {target: reason for target in TARGETS}


_SHARE = ("cross_attention.share",)
_GATE = ("cross_attention.gate",)
_NORM = ("cross_attention.image_norm", "cross_attention.image_norm_eps")
_LAYERS = ("cross_attention.layers",)
_DIM = ("cross_attention.dim", "backbone.width")
_MEAN_SQUARE = "image tokens are normed by their mean square, eps 1e-8, there (reference 2.2)"
_SCOPE = ("cross_attention.scope",)
_TO_CONDITIONAL = "retrain with gates.Conditional() or gate=None, or export to torch or candle"

MATRIX: tuple[Line, ...] = (
    Line("gate: none", _GATE, lambda m: designs.gate(m) is None),
    Line(
        "gate: constant tanh", _GATE, lambda m: designs.gate(m) == gates.Constant("tanh"),
        {"mlx": _MLX_GATE}, _TO_CONDITIONAL,
    ),
    Line(
        "gate: constant sigmoid", _GATE, lambda m: designs.gate(m) == gates.Constant("sigmoid"),
        {"mlx": _MLX_GATE}, _TO_CONDITIONAL,
    ),
    Line(
        "gate: conditional tanh", _GATE, designs.conditional("tanh"),
        {"mlx": _MLX_GATE}, _TO_CONDITIONAL,
    ),
    Line("gate: conditional sigmoid (release)", _GATE, designs.conditional("sigmoid")),
    Line(
        "gate: conditional tanh, learned bias", _GATE, designs.conditional("tanh", bias=True),
        {"torch": _NO_BIAS, "mlx": _NO_BIAS}, "retrain with bias=False, or export to candle",
    ),
    Line(
        "gate: conditional sigmoid, learned bias", _GATE,
        designs.conditional("sigmoid", bias=True),
        {"torch": _NO_BIAS, "mlx": _NO_BIAS}, "retrain with bias=False, or export to candle",
    ),
    Line(
        "gate: conditional, hidden not width / 8", (*_GATE, "backbone.width"), designs.other_width,
        _all(_WIDTH), "retrain with Conditional(hidden=int(0.125 x backbone.width))",
    ),
    Line(
        "gate: shared by all layers, with an alpha each", ("cross_attention.share_gate",),
        lambda m: designs.gate(m) is not None and m.cross_attention.share_gate,
        {
            "mlx": "no shared gate and no per-layer alpha there (reference 1.5)",
            "candle": "each layer has its own gate and no alpha there (reference 2.6, 4.6)",
        },
        "retrain with share_gate=False, or export to torch",
    ),
    Line("share: qkv (release)", _SHARE, lambda m: m.cross_attention.share == "qkv"),
    Line(
        "share: kv", _SHARE, lambda m: m.cross_attention.share == "kv",
        _all("no layer has queries of its own beside shared keys there (reference 2.6, 4.3)"),
        "retrain with share='qkv'",
    ),
    Line(
        "share: none", _SHARE, lambda m: m.cross_attention.share == "none",
        _all(_LAYER_0), "retrain with share='qkv'",
    ),
    Line("layers: all look (release)", _LAYERS, lambda m: designs.layers(m) == (True, True)),
    Line(
        "layers: some look, the first among them", _LAYERS,
        lambda m: designs.layers(m) == (False, True),
        {"mlx": _EVERY_LAYER, "candle": _EVERY_LAYER},
        "retrain with layers=(), or export to torch",
    ),
    Line(
        "layers: some look, not the first", _LAYERS, lambda m: designs.layers(m) == (False, False),
        {
            "torch": "its server takes keys and values from layer 0's cross-attention (reference 5.4)",
            "mlx": _EVERY_LAYER,
            "candle": _EVERY_LAYER,
        },
        "retrain with layers that begin with 0",
    ),
    Line(
        "image tokens: as wide as the backbone (release)", _DIM,
        lambda m: m.image_width == m.backbone.width,
    ),
    Line(
        "image tokens: of another width", _DIM, lambda m: m.image_width != m.backbone.width,
        {"mlx": "keys and values are made of tokens as wide as the backbone there (reference 4.5)"},
        "retrain with dim=None, or export to torch or candle",
    ),
    Line(
        "image projection: none, features are as wide as tokens", (*_DIM, "siglip.width"),
        lambda m: not m.projects_image,
        {"mlx": "image features always go through proj_xa there (reference 4.5)"},
        "retrain with another dim, or export to torch or candle",
    ),
    Line("scope: all frames (release)", _SCOPE, lambda m: m.cross_attention.scope == scopes.Scope()),
    Line(
        "scope: from a frame on", _SCOPE, designs.starts_late,
        nearly={
            "mlx": "no file says it: start the server with --xa-start (reference 5.4)",
            "candle": "no file says it: the client sends xa_start (reference 5.5)",
        },
    ),
    Line(
        "scope: so many frames", _SCOPE, designs.ends,
        {"mlx": _NO_END, "candle": _NO_END}, "retrain with frames=None, or export to torch",
    ),
    Line(
        "image norm: variance, eps 1e-5 (release)", _NORM,
        lambda m: designs.image_norm(m) == ("variance", 1e-5),
        nearly={"mlx": _MEAN_SQUARE, "candle": _MEAN_SQUARE},
    ),
    Line(
        "image norm: mean square, eps 1e-8", _NORM,
        lambda m: designs.image_norm(m) == ("mean_square", 1e-8),
    ),
    Line(
        "image norm: another", _NORM,
        lambda m: designs.image_norm(m) not in {("variance", 1e-5), ("mean_square", 1e-8)},
        nearly={"mlx": _MEAN_SQUARE, "candle": _MEAN_SQUARE},
    ),
    Line(
        "image norm: an eps that is not 1e-5 or 1e-8", _NORM,
        lambda m: designs.image_norm(m) not in TORCH_NORMS,
        {"torch": "norms have eps 1e-5 or 1e-8 there (reference 2.2)"},
        "retrain with one of these",
    ),
    Line(
        "depth transformer norm: mean square (release)", ("depformer.norm",),
        lambda m: m.depformer.norm == "mean_square",
    ),
    Line(
        "depth transformer norm: variance", ("depformer.norm",),
        lambda m: m.depformer.norm == "variance",
        {
            "mlx": "computes the mean square (reference 2.2)",
            "candle": "computes the mean square (reference 2.2)",
        },
        "set depformer.norm='mean_square', which the frozen weights were trained with",
    ),
    Line(
        "norm eps: not 1e-8", ("backbone.norm_eps", "depformer.norm_eps"),
        lambda m: {m.backbone.norm_eps, m.depformer.norm_eps} != {NORM_EPS},
        _all(_EPS), "retrain with 1e-8",
    ),
    Line("delays: 0, then 1 (release)", ("delays",), lambda m: designs.delays(m) == (True, True)),
    Line(
        "delays: 0, then another for all", ("delays",), lambda m: designs.delays(m) == (False, True),
        {"mlx": _LEVELS}, "use delays of 1, or export to torch or candle",
    ),
    Line(
        "delays: others for the user only", ("delays",),
        lambda m: designs.delays(m) == (True, False),
        {"candle": _ACOUSTIC}, "use delays of 1, or export to torch or mlx",
    ),
    Line(
        "delays: several for the assistant", ("delays",),
        lambda m: designs.delays(m) == (False, False),
        {"mlx": _LEVELS, "candle": _ACOUSTIC}, "use delays of 1, or export to torch",
    ),
)  # fmt: skip

_QUANTIZED: dict[Quantization, Mapping[Target, str]] = {
    "q8": {
        "torch": "kyuteye_pt loads no quantized weights (reference 4.2)",
        "candle": "kyuteye_rs reads its own kind, q8_0 (reference 4.6)",
    },
    "q4": {
        "torch": "kyuteye_pt loads no quantized weights (reference 4.2)",
        "candle": "kyuteye_rs reads its own kind, q8_0 (reference 4.6)",
    },
    "q8_0": {
        "torch": "kyuteye_pt loads no quantized weights (reference 4.2)",
        "mlx": "kyuteye_mlx reads what nn.quantize makes: q8 or q4 (reference 4.5)",
    },
}


def refusals(config: schema.ModelConfig, target: Target) -> list[str]:
    """Returns why the target would run this design wrongly, each with a remedy; empty if it can."""
    return [
        f"{_values(config, line.fields)}: {UPSTREAM[target]}: {line.refused[target]}; {line.remedy}"
        for line in MATRIX
        if target in line.refused and line.made_by(config)
    ]


def weight_file(target: Target, quantization: Quantization | None = None) -> str:
    """Returns upstream's name of the weight file.

    Raises:
      ValueError: if the target reads no such file.
    """
    if quantization is None:
        return file_names.MODEL
    if target in _QUANTIZED[quantization]:
        known = list(file_names.QUANTIZED[target]) or "none"
        raise ValueError(
            f"cannot export {quantization} to {target}: {_QUANTIZED[quantization][target]};"
            f" its quantizations: {known}"
        )
    return file_names.QUANTIZED[target][quantization]


def table() -> str:
    """Returns the matrix as text, with numbered reasons below."""
    nothing: Mapping[Target, str] = {}
    lines = [(line.choice, line.refused, line.nearly) for line in MATRIX]
    lines += [(f"file: {name}", nothing, nothing) for name in get_args(schema.Dtype)]
    lines += [(f"file: {name}", refused, nothing) for name, refused in _QUANTIZED.items()]
    width = max(len(choice) for choice, *_ in lines)
    reasons: dict[str, int] = {}
    rows = ["".ljust(width) + "".join(f"  {target:11}" for target in TARGETS)]
    for choice, refused, nearly in lines:
        cells = [_cell(refused.get(t), nearly.get(t), reasons) for t in TARGETS]
        rows.append(choice.ljust(width) + "".join(f"  {cell:11}" for cell in cells))
    rows += ["", *(f"[{number}] {reason}" for reason, number in reasons.items())]
    return "\n".join(row.rstrip() for row in rows)


def _cell(refused: str | None, nearly: str | None, reasons: dict[str, int]) -> str:
    """Returns yes, no or nearly, and the number of the reason, which may be a new one."""
    reason = refused or nearly
    if reason is None:
        return "yes"
    return f"{'no' if refused else 'nearly'} [{reasons.setdefault(reason, len(reasons) + 1)}]"


def _values(config: schema.ModelConfig, fields: tuple[str, ...]) -> str:
    return ", ".join(f"{path}={operator.attrgetter(path)(config)!r}" for path in fields)
