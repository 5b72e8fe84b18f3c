"""Where an upstream runtime runs a design but computes it differently from the model as trained.

Facts are from sections 2.2 - 5.4 of the reference notes.
"""

from __future__ import annotations

import operator

from mvjax import gates
from mvjax.config import schema, upstream
from mvjax.export import targets

_RUNTIMES: dict[targets.Target, upstream.Runtime] = {
    "torch": "kyuteye_pt",
    "mlx": "kyuteye_mlx",
    "candle": "candle",
}
# {(field in which the runtimes differ, what a runtime has): what that means}
_NOTES = {
    ("cross_attention.image_norm", "variance"): "norms image tokens by their variance",
    ("cross_attention.image_norm", "mean_square"): "norms image tokens by their mean square",
    ("cross_attention.image_norm_eps", 1e-5): "has eps 1e-5 in the norm of image tokens",
    ("cross_attention.image_norm_eps", 1e-8): "has eps 1e-8 in the norm of image tokens",
    ("siglip.final_norm_eps", 1e-6): "has eps 1e-6 in SigLIP's last norm",
    ("siglip.final_norm_eps", 1e-5): "has eps 1e-5 in SigLIP's last norm",
    ("backbone.context_has_self", True): "counts a frame itself among those it attends to",
    ("backbone.context_has_self", False): "attends to one frame more than its context says",
    ("stream.first_step_forcing", True): "feeds the depth transformer the initial ids at call 0",
    ("stream.first_step_forcing", False): "feeds the depth transformer its own samples at call 0",
    (
        "stream.user_early",
        True,
    ): "shows the user's frame one call (80 ms) earlier, and drops the first",
    ("stream.user_early", False): "shows the user's frame one call (80 ms) later",
}
# fields that the runtime reads from a file of the export, so that nothing differs
_IN_FILE = {
    "torch": (
        "depformer.norm",
        "cross_attention.image_norm",
        "cross_attention.image_norm_eps",
        "backbone.context_has_self",
    ),
    "mlx": ("depformer.norm",),
    "candle": ("depformer.norm",),
}
# for every config: how a runtime rounds, and what it does that no config field describes
ALWAYS: dict[targets.Target, tuple[str, ...]] = {
    "torch": (
        "kyuteye_pt norms image tokens and computes gates in the dtype it serves in: in bfloat16 a gate"
        " logit moves in steps of 1/64",
        "kyuteye_pt resizes images as torch does: up to 2 gray levels from Pillow on noise",
    ),
    "mlx": (
        "kyuteye_mlx rounds image keys and values to bfloat16 and computes gates in the dtype it serves"
        " in",
        "kyuteye_mlx adds norm_cross(x) to the residual of a conversation without an image",
    ),
    "candle": (
        "kyuteye_rs computes gates in the dtype it serves in",
        "kyuteye_rs resizes images as the Rust crate image does: up to 30 gray levels from Pillow on noise",
        "kyuteye_rs keeps the acoustic codes of call 0 in codec frame 0",
        "kyuteye_rs stops at 4096 frames",
    ),
}
_RELEASE = schema.ModelConfig()


def deviations(config: schema.ModelConfig, target: targets.Target) -> list[str]:
    """Returns where the upstream runtime differs from this model in what no file of the export sets."""
    name = targets.UPSTREAM[target]
    notes = _sizes(config, target)
    for path, value in upstream.settings(_RUNTIMES[target]).items():
        ours = operator.attrgetter(path)(config)
        if ours != value and path not in _IN_FILE[target]:
            notes.append(f"{name} {_NOTES[path, value]}; the model has {path}={ours!r}")
    if target == "candle" and isinstance(config.cross_attention.gate, gates.Constant):
        notes.append("kyuteye_rs reports no gate activation for constant gates")
    return [*notes, *ALWAYS[target]]


def _sizes(config: schema.ModelConfig, target: targets.Target) -> list[str]:
    """Notes on what is built into the runtime's source."""
    name, notes = targets.UPSTREAM[target], []
    s, r = config.siglip, _RELEASE.siglip
    if (s.width, s.layers, s.heads, s.hidden, s.patch) != (
        r.width, r.layers, r.heads, r.hidden, r.patch,
    ):  # fmt: skip
        notes.append(
            f"{name} builds SigLIP So400m/14, so this encoder runs in mvjax's own runtimes only"
        )
    if target == "torch":
        return notes
    same = (
        _shape(config.backbone) == _shape(_RELEASE.backbone)
        and _shape(config.depformer) == _shape(_RELEASE.depformer)
        and config.backbone.context == _RELEASE.backbone.context
        and config.backbone.rope_base == _RELEASE.backbone.rope_base
        and config.codebooks_out == _RELEASE.codebooks_out
        and (config.codebooks, config.text_vocab, config.audio_vocab)
        == (_RELEASE.codebooks, _RELEASE.text_vocab, _RELEASE.audio_vocab)
    )
    if not same:
        notes.append(
            f"{name} has the sizes of the released model in its source, so this model runs in mvjax's"
            " own runtimes only"
        )
    return notes


def _shape(config: schema.BackboneConfig | schema.DepformerConfig) -> tuple[int, int, int, int]:
    return config.width, config.layers, config.heads, config.hidden
