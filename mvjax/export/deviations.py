"""Where an upstream runtime runs a design but computes it differently from the model as trained.

Facts are from sections 2.2 - 5.4 of the reference notes.
"""

from __future__ import annotations

import operator

from mvjax import gates
from mvjax.config import schema, upstream
from mvjax.export import targets

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
        "depformer.norm", "cross_attention.image_norm", "cross_attention.image_norm_eps",
        "backbone.context_has_self",
    ),
    "mlx": ("depformer.norm",),
    "candle": ("depformer.norm",),
}  # fmt: skip
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
# what is built into the source of all runtimes, and of all but kyuteye_pt
_ENCODER = operator.attrgetter("width", "layers", "heads", "hidden", "patch")
_SIZES = operator.attrgetter(
    "backbone.width", "backbone.layers", "backbone.heads", "backbone.hidden", "backbone.context",
    "backbone.rope_base", "depformer.width", "depformer.layers", "depformer.heads",
    "depformer.hidden", "codebooks", "codebooks_out", "text_vocab", "audio_vocab",
)  # fmt: skip


def deviations(config: schema.ModelConfig, target: targets.Target) -> list[str]:
    """Returns where the upstream runtime differs from this model in what no file of the export sets."""
    name, notes = targets.UPSTREAM[target], []
    if _ENCODER(config.siglip) != _ENCODER(_RELEASE.siglip):
        notes.append(
            f"{name} builds SigLIP So400m/14, so this encoder runs in mvjax's own runtimes only"
        )
    if target != "torch" and _SIZES(config) != _SIZES(_RELEASE):
        notes.append(
            f"{name} has the sizes of the released model in its source, so this model runs in mvjax's"
            " own runtimes only"
        )
    for path, value in upstream.settings("candle" if target == "candle" else name).items():
        ours = operator.attrgetter(path)(config)
        if ours != value and path not in _IN_FILE[target]:
            notes.append(f"{name} {_NOTES[path, value]}; the model has {path}={ours!r}")
    if target == "candle" and isinstance(config.cross_attention.gate, gates.Constant):
        notes.append("kyuteye_rs reports no gate activation for constant gates")
    return [*notes, *ALWAYS[target]]
