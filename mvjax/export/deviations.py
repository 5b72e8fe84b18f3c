"""Where an upstream runtime, or its server, runs a design otherwise than the model was trained."""

from __future__ import annotations

import operator

from mvjax.config import schema, upstream
from mvjax.export import matrix, server_matrix, serving, targets

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
        "kyuteye_pt's server rounds weights and image tokens to bfloat16 unless it is started with"
        " --dtype float32",
        "kyuteye_pt's server keeps what one client's URL asks for (temperatures, xa_start,"
        " image_resolution) for the clients after it",
    ),
    "mlx": (
        "kyuteye_mlx rounds image features, keys and values to bfloat16 and computes gates in the dtype"
        " it serves in",
        "kyuteye_mlx adds norm_cross(x) to the residual of a conversation without an image",
        "kyuteye_mlx's server shows the image from frame 15 on unless it is started with --xa-start",
        "kyuteye_mlx's server takes grayscale, palette and transparent images as they are: send RGB",
        "kyuteye_mlx's server ends a conversation with an error 5 frames after --steps, at 320 s by"
        " default",
    ),
    "candle": (
        "kyuteye_rs computes gates in the dtype it serves in: bfloat16 on CUDA, float32 elsewhere",
        "kyuteye_rs resizes images as the Rust crate image does: up to 30 gray levels from Pillow on noise",
        "kyuteye_rs keeps the acoustic codes of call 0 in codec frame 0",
        "kyuteye_rs stops at 4096 frames, 328 s; its server hangs up after 360 s",
    ),
}


# for what a file may be quantized to
_QUANTIZED: dict[targets.Quantization | None, tuple[str, ...]] = {
    "q8_0": (
        "kyuteye_rs rounds what enters a product with q8_0 weights to 8 bits, too, in blocks of 32 (on CPUs"
        " and CUDA, not on Metal), unless CANDLE_DEQUANTIZE_ALL=1 is set; its cost is in a certificate whose"
        " computation was run",
    ),
}


def deviations(
    config: schema.ModelConfig,
    target: targets.Target,
    quantization: targets.Quantization | None = None,
) -> list[str]:
    """Returns where the upstream runtime differs from this model in what no file of the export sets."""
    name, settled = targets.UPSTREAM[target], upstream.settings("candle").keys()
    notes = [
        f"{name} {row.nearly[target]}"
        for row in matrix.MATRIX
        if target in row.nearly and row.made_by(config) and settled.isdisjoint(row.fields)
    ]
    for path, value in upstream.settings("candle" if target == "candle" else name).items():
        ours = operator.attrgetter(path)(config)
        if ours != value and path not in _IN_FILE[target]:
            notes.append(f"{name} {_NOTES[path, value]}; the model has {path}={ours!r}")
    if target == "candle" and server_matrix.builds_encoder(config):
        notes.append(
            f"{name} sees as this model was trained if its client asks for {serving.path(config)}"
        )
    return [*notes, *ALWAYS[target], *_QUANTIZED.get(quantization, ())]
