"""The compatibility matrix: which designs each upstream runtime, its server too, can run, and why not.

Data only: `targets.refusals` applies it to a config, `targets.table` prints it, `deviations` quotes what runs
only nearly. Rows are of a kind, the word before the colon; a design that no row of a kind makes is refused.
The facts are those of upstream's code; what its servers set is in `server_matrix.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mvjax import gates
from mvjax.config import schema
from mvjax.export import choice, gate_words, server_matrix

Model = schema.ModelConfig

NORM_EPS = 1e-8  # of every norm but the image's, in all runtimes
# kyuteye_pt: {(kind, eps): name}
TORCH_NORMS: dict[tuple[schema.NormKind, float], str] = {
    ("variance", 1e-5): "rms_norm",
    ("variance", 1e-8): "rms_norm_f32",
    ("mean_square", 1e-5): "real_rms_norm",
    ("mean_square", 1e-8): "real_rms_norm_f32",
}


def _gate(model: Model) -> gates.Gate | None:
    return model.cross_attention.gate


def _gate_is(name: str) -> Callable[[Model], bool]:
    return lambda model: gate_words.name(_gate(model)) == name


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
    """Whether the delays are 0, then 1, for both voices, and whether all acoustic delays are equal."""
    own, users = model.codebooks_out, model.codebooks - 1 - model.codebooks_out

    def equal(late: int) -> bool:
        return model.delays == (0, *(0, *[late] * own)[:own], *(0, *[late] * users)[:users])

    return equal(1), equal(max(model.delays))


_GATE = ("cross_attention.gate",)
_SHARE = ("cross_attention.share",)
_LAYERS = ("cross_attention.layers",)
_DIM = ("cross_attention.dim", "backbone.width")
_NORM = ("cross_attention.image_norm", "cross_attention.image_norm_eps")

_NO_ACTIVATION = {"candle": "reports no gate activation"}
_MLX_GATE = {"mlx": "the conditional sigmoid gate is the only one that its server builds"}
_TO_CONDITIONAL = "retrain with gates.Conditional(), or export to torch or candle"
_NO_BIAS = choice.of(
    "torch", "mlx", reason="no gate has a bias: sigmoid logits are shifted by 4, a constant"
)
_TO_UNBIASED = "retrain with bias=False, or export to candle"
_EVERY_LAYER = "every layer has cross-attention, and no config can change that"
_SERVED_NORM = choice.of(
    "mlx", "candle", reason="image tokens are normed by their mean square, eps 1e-8"
)
_DEPTH_NORM = choice.of("mlx", "candle", reason="it computes the mean square")
_MLX_DELAYS = {
    "mlx": "each voice's first codebook has delay 0 and all others have delay 1, whatever a file says"
}
_CANDLE_DELAYS = {"candle": "the assistant's and the user's acoustic codebooks have the same delay"}

MATRIX: tuple[choice.DesignChoice, ...] = (
    choice.DesignChoice("gate: none", _GATE, _gate_is("none"), _MLX_GATE, _TO_CONDITIONAL, _NO_ACTIVATION),
    choice.DesignChoice(
        "gate: constant tanh", _GATE, _gate_is("constant tanh"),
        _MLX_GATE, _TO_CONDITIONAL, _NO_ACTIVATION,
    ),
    choice.DesignChoice(
        "gate: constant sigmoid", _GATE, _gate_is("constant sigmoid"),
        _MLX_GATE, _TO_CONDITIONAL, _NO_ACTIVATION,
    ),
    choice.DesignChoice(
        "gate: conditional tanh", _GATE, _gate_is("conditional tanh"), _MLX_GATE, _TO_CONDITIONAL
    ),
    choice.DesignChoice("gate: conditional sigmoid (release)", _GATE, _gate_is("conditional sigmoid")),
    choice.DesignChoice(
        "gate: conditional tanh, learned bias", _GATE, _gate_is("conditional tanh, learned bias"),
        _NO_BIAS, _TO_UNBIASED,
    ),
    choice.DesignChoice(
        "gate: conditional sigmoid, learned bias", _GATE,
        _gate_is("conditional sigmoid, learned bias"), _NO_BIAS, _TO_UNBIASED,
    ),
    choice.DesignChoice(
        "gate: conditional, hidden not width / 8", (*_GATE, "backbone.width"), _other_gate_width,
        choice.everywhere("gates are built with hidden = int(0.125 x backbone.width)"),
        "retrain with Conditional(hidden=int(0.125 x backbone.width))",
    ),
    choice.DesignChoice(
        "gate: any other", _GATE, lambda m: gate_words.name(_gate(m)) is None,
        choice.everywhere("it has no such gate"),
        "retrain with a gate of `mvjax export --list`, or teach its runtime and its config file",
    ),
    choice.DesignChoice(
        "gate: shared by all layers, with an alpha each", ("cross_attention.share_gate",),
        lambda m: _gate(m) is not None and m.cross_attention.share_gate,
        choice.of("mlx", "candle", reason="each layer has its own gate, and there is no alpha"),
        "retrain with share_gate=False, or export to torch",
    ),
    choice.DesignChoice("share: qkv (release)", _SHARE, lambda m: m.cross_attention.share == "qkv"),
    choice.DesignChoice(
        "share: kv", _SHARE, lambda m: m.cross_attention.share == "kv",
        choice.everywhere("no layer has its own queries beside shared keys and values"),
        "retrain with share='qkv'",
    ),
    choice.DesignChoice(
        "share: none", _SHARE, lambda m: m.cross_attention.share == "none",
        choice.everywhere("keys and values are computed once, with layer 0's weights, for all layers"),
        "retrain with share='qkv'",
    ),
    choice.DesignChoice("layers: all look (release)", _LAYERS, lambda m: _looking(m) == (True, True)),
    choice.DesignChoice(
        "layers: some look, the first among them", _LAYERS, lambda m: _looking(m) == (False, True),
        {"mlx": _EVERY_LAYER, "candle": _EVERY_LAYER},
        "retrain with layers=(), or export to torch",
    ),
    choice.DesignChoice(
        "layers: some look, not the first", _LAYERS, lambda m: _looking(m) == (False, False),
        {
            "torch": "its server takes keys and values from layer 0's cross-attention",
            "mlx": _EVERY_LAYER,
            "candle": _EVERY_LAYER,
        },
        "retrain with layers that begin with 0",
    ),
    choice.DesignChoice(
        "image tokens: as wide as the backbone (release)", _DIM,
        lambda m: m.image_width == m.backbone.width,
    ),
    choice.DesignChoice(
        "image tokens: of another width", _DIM, lambda m: m.image_width != m.backbone.width,
        {"mlx": "keys and values are made of tokens as wide as the backbone"},
        "retrain with dim=None, or export to torch or candle",
    ),
    choice.DesignChoice(
        "image projection: linear (release)", (*_DIM, "siglip.width"), lambda m: m.projects_image
    ),
    choice.DesignChoice(
        "image projection: none, features are as wide as tokens", (*_DIM, "siglip.width"),
        lambda m: not m.projects_image,
        {"mlx": "image features always go through proj_xa"},
        "retrain with another dim, or export to torch or candle",
    ),
    choice.DesignChoice(
        "image norm: variance, eps 1e-5 (release)", _NORM,
        lambda m: _image_norm(m) == ("variance", 1e-5), nearly=_SERVED_NORM,
    ),
    choice.DesignChoice(
        "image norm: mean square, eps 1e-8", _NORM,
        lambda m: _image_norm(m) == ("mean_square", 1e-8),
    ),
    choice.DesignChoice(
        "image norm: another", _NORM,
        lambda m: _image_norm(m) not in {("variance", 1e-5), ("mean_square", 1e-8)},
        nearly=_SERVED_NORM,
    ),
    choice.DesignChoice(
        "image norm: an eps that is not 1e-5 or 1e-8", _NORM,
        lambda m: _image_norm(m) not in TORCH_NORMS,
        {"torch": "norms have eps 1e-5 or 1e-8"}, "retrain with one of these",
    ),
    choice.DesignChoice(
        "depth transformer norm: mean square (release)", ("depformer.norm",),
        lambda m: m.depformer.norm == "mean_square",
    ),
    choice.DesignChoice(
        "depth transformer norm: variance", ("depformer.norm",),
        lambda m: m.depformer.norm == "variance", _DEPTH_NORM,
        "set depformer.norm='mean_square', which the frozen weights were trained with",
    ),
    choice.DesignChoice(
        "norm eps: 1e-8 (release)", ("backbone.norm_eps", "depformer.norm_eps"),
        lambda m: m.backbone.norm_eps == m.depformer.norm_eps == NORM_EPS,
    ),
    choice.DesignChoice(
        "norm eps: not 1e-8", ("backbone.norm_eps", "depformer.norm_eps"),
        lambda m: {m.backbone.norm_eps, m.depformer.norm_eps} != {NORM_EPS},
        choice.everywhere("1e-8 is built in"), "retrain with 1e-8",
    ),
    choice.DesignChoice("delays: 0, then 1 (release)", ("delays",), lambda m: _delays(m)[0]),
    choice.DesignChoice(
        "delays: 0, then another for all", ("delays",), lambda m: _delays(m) == (False, True),
        _MLX_DELAYS, "use delays of 1, or export to torch or candle",
    ),
    choice.DesignChoice(
        "delays: any other", ("delays",), lambda m: _delays(m) == (False, False),
        {**_MLX_DELAYS, **_CANDLE_DELAYS}, "use delays of 1, or export to torch",
    ),
    *server_matrix.ROWS,
)  # fmt: skip

_NO_QUANTIZED = {"torch": "kyuteye_pt loads no quantized weights"}
# {quantization of a weight file: {target: why it cannot read it}}
QUANTIZED: dict[str, Mapping[str, str]] = {
    "q8": {**_NO_QUANTIZED, "candle": "kyuteye_rs reads q8_0"},
    "q4": {**_NO_QUANTIZED, "candle": "kyuteye_rs reads q8_0"},
    "q8_0": {**_NO_QUANTIZED, "mlx": "kyuteye_mlx reads what nn.quantize makes: q8 or q4"},
}
