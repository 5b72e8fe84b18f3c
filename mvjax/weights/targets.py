"""What each upstream runtime can run: the designs it would run wrongly, and its config files."""

from __future__ import annotations

import math
from typing import Any, Literal

from mvjax import config as config_lib
from mvjax.nn import gates

Target = Literal["torch", "mlx"]

UPSTREAM = {"torch": "kyuteye_pt", "mlx": "kyuteye_mlx"}
MODEL_FILE = "model.safetensors"
CODEC_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_FILE = "tokenizer_spm_32k_3.model"
CONFIG_FILE = {"torch": "moshika-vis.yaml", "mlx": "config.json"}
ENCODER_FILE = "siglip448.config"  # the name kyuteye_mlx opens, whatever the sizes

_NORM_EPS = 1e-8  # of every norm in both runtimes but the image's
# kyuteye_pt: {name of a norm: (kind, eps)}; reference section 2.2
_IMAGE_NORMS: dict[str, tuple[config_lib.NormKind, float]] = {
    "rms_norm": ("variance", 1e-5),
    "rms_norm_f32": ("variance", 1e-8),
    "real_rms_norm": ("mean_square", 1e-5),
    "real_rms_norm_f32": ("mean_square", 1e-8),
}
_DEPTH_NORMS: dict[config_lib.NormKind, str] = {
    "variance": "rms_norm_f32",
    "mean_square": "real_rms_norm_f32",
}


def refusals(config: config_lib.ModelConfig, target: Target) -> list[str]:
    """Returns why the target would run this design wrongly, each with a remedy; empty if it can."""
    adapters, backbone = config.cross_attention, config.backbone
    name = UPSTREAM[target]
    found = []
    if adapters.share != "qkv":
        found.append(
            f"cross_attention.share={adapters.share!r}: {name} computes keys and values once, with"
            " layer 0's weights, for all layers (reference 5.4); retrain with share='qkv'"
        )
    hidden = int(0.125 * backbone.width)
    if isinstance(adapters.gate, gates.Conditional) and adapters.gate.hidden != hidden:
        found.append(
            f"cross_attention.gate={adapters.gate}: {name} builds gates with hidden ="
            f" int(0.125 x backbone.width) = {hidden}; retrain with Conditional(hidden={hidden})"
        )
    for path, eps in (
        ("backbone.norm_eps", backbone.norm_eps),
        ("depformer.norm_eps", config.depformer.norm_eps),
    ):
        if eps != _NORM_EPS:
            found.append(f"{path}={eps}: {name} has {_NORM_EPS} built in; retrain with that")
    return found + (_mlx_refusals(config) if target == "mlx" else _torch_refusals(config))


def _torch_refusals(config: config_lib.ModelConfig) -> list[str]:
    adapters = config.cross_attention
    norm = (adapters.image_norm, adapters.image_norm_eps)
    if norm in _IMAGE_NORMS.values():
        return []
    return [
        f"cross_attention.image_norm, image_norm_eps = {norm}: kyuteye_pt has only"
        f" {sorted(_IMAGE_NORMS.values())}; retrain with one of these"
    ]


def _mlx_refusals(config: config_lib.ModelConfig) -> list[str]:
    adapters = config.cross_attention
    found = []
    always = "kyuteye_mlx always builds the conditional sigmoid gate (reference 1.5, 2.6)"
    remedy = "retrain with gates.Conditional() or gate=None, or export to torch"
    if adapters.gate is not None and not (
        isinstance(adapters.gate, gates.Conditional) and adapters.gate.activation == "sigmoid"
    ):
        found.append(f"cross_attention.gate={adapters.gate}: {always}; {remedy}")
    if adapters.gate is not None and adapters.share_gate:
        found.append(
            "cross_attention.share_gate=True: kyuteye_mlx has no per-layer alpha and no shared"
            " gate; retrain with share_gate=False, or export to torch"
        )
    if config.depformer.norm != "mean_square":
        found.append(
            f"depformer.norm={config.depformer.norm!r}: kyuteye_mlx computes the mean square;"
            " set depformer.norm='mean_square', which the frozen weights were trained with"
        )
    levels = (0, *[1] * (config.codebooks_out - 1))
    if config.delays[0] != 0 or config.delays[1 : config.codebooks_out + 1] != levels:
        found.append(
            f"delays={config.delays}: kyuteye_mlx assumes text 0 and assistant {levels}; use these"
        )
    return found


def deviations(config: config_lib.ModelConfig, target: Target) -> list[str]:
    """Returns where the upstream runtime differs from this one without being told so by a file."""
    adapters, siglip = config.cross_attention, config.siglip
    notes = []
    if (siglip.width, siglip.layers, siglip.hidden, siglip.patch) != (1152, 27, 4304, 14):
        notes.append(
            f"{UPSTREAM[target]} builds SigLIP So400m/14 whatever {ENCODER_FILE} says, so this"
            " encoder runs in mvjax's own runtimes only"
        )
    if target == "torch":
        return [
            *notes,
            "kyuteye_pt shows the user's frame to the model one call (80 ms) earlier and drops the"
            " first (reference 5.2)",
            "kyuteye_pt feeds its own samples to the depth transformer at call 0, where training"
            " had the initial id (reference 5.3)",
        ]
    if (adapters.image_norm, adapters.image_norm_eps) != ("mean_square", _NORM_EPS):
        notes.append(
            f"kyuteye_mlx norms image tokens by the mean square, eps 1e-8; these were trained with"
            f" {adapters.image_norm}, eps {adapters.image_norm_eps} (reference 2.2)"
        )
    context = config.backbone.context
    return [
        *notes,
        "kyuteye_mlx has eps 1e-5 in SigLIP's last norm; trained with 1e-6 (reference 3.2)",
        "kyuteye_mlx rounds image keys and values to bfloat16 (reference 5.4)",
        f"kyuteye_mlx attends to {context + 1} frames; trained with {context} (reference 2.4)",
        "kyuteye_mlx reads its sizes from its source, not from config.json",
    ]


def torch_config(config: config_lib.ModelConfig) -> dict[str, Any]:
    """Returns `moshika-vis.yaml`: the keys of the release, then the sizes of MoshiConfig."""
    backbone, depformer, adapters = config.backbone, config.depformer, config.cross_attention
    gate = adapters.gate
    feedforward = _feedforward(backbone.width, backbone.hidden)
    norm = (adapters.image_norm, adapters.image_norm_eps)
    return {
        "hf_repo": None,
        "model": MODEL_FILE,
        "mimi_codec": CODEC_FILE,
        "text_tokenizer": TOKENIZER_FILE,
        "encoder_name": f"siglip_gemma2_{_nearest_encoder(config.siglip.image_size)}",
        "image_size": config.siglip.image_size,
        "interpolation": "bicubic",
        "num_crossattended_tokens": -1,
        "num_extra_tokens": 0,
        "add_boi_eoi": False,
        "align_img_and_speech_tokens_dim": True,
        "norm_xa": next(name for name, known in _IMAGE_NORMS.items() if known == norm),
        "norm_extra": None,
        "xa_dim": None,
        "xa_gating": "none" if gate is None else gate.activation,
        "xa_conditional_gating": isinstance(gate, gates.Conditional),
        "xa_shared": True,
        "xa_gate_shared": adapters.share_gate,
        "xa_layers": [],
        "xa_start": 0,  # the release says "start", at which its server stops (reference 5.5)
        "xa_end": "end",
        "xa_step": 1,
        "xa_delay": 0,
        # MoshiConfig; `norm` reaches the depth transformer only (reference 1.4)
        "dim": backbone.width,
        "num_layers": backbone.layers,
        "num_heads": backbone.heads,
        "hidden_scale": _scale(feedforward, backbone.width),
        "context": backbone.context,
        "max_period": backbone.rope_base,
        "norm": _DEPTH_NORMS[depformer.norm],
        "text_card": config.text_vocab,
        "padding_token_id": config.text_pad,
        "audio_card": config.audio_vocab,
        "n_q": config.codebooks - 1,
        "dep_q": config.codebooks_out,
        "delays": list(config.delays),
        "depformer_dim": depformer.width,
        "depformer_num_layers": depformer.layers,
        "depformer_num_heads": depformer.heads,
        "depformer_dim_feedforward": _feedforward(depformer.width, depformer.hidden),
        "depformer_context": config.codebooks_out,
    }


def mlx_config(config: config_lib.ModelConfig) -> dict[str, Any]:
    """Returns `config.json`: the fields of kyuteye_mlx's LmConfig, and the image norm."""
    backbone, depformer, adapters = config.backbone, config.depformer, config.cross_attention
    return {
        "transformer": {
            "d_model": backbone.width,
            "num_heads": backbone.heads,
            "num_layers": backbone.layers,
            "dim_feedforward": _mlx_feedforward(backbone.width, backbone.hidden),
            "context": backbone.context,
            "max_period": backbone.rope_base,
            "norm": "rms_norm",
            "cross_attention": True,
            "xa_shared": True,
            "xa_gating": "none" if adapters.gate is None else "sigmoid",
            "xa_start": 0,
            "img_emb_dim": config.siglip.width,
        },
        "depformer": {
            "transformer": {
                "d_model": depformer.width,
                "num_heads": depformer.heads,
                "num_layers": depformer.layers,
                "dim_feedforward": _mlx_feedforward(depformer.width, depformer.hidden),
                "context": config.codebooks_out,
                "norm": "rms_norm",
                "positional_embedding": "none",
                "cross_attention": False,
            },
            "num_slices": config.codebooks_out,
        },
        "text_in_vocab_size": config.text_vocab + 1,
        "text_out_vocab_size": config.text_vocab,
        "audio_vocab_size": config.audio_vocab + 1,
        "audio_codebooks": config.codebooks - 1,
        "audio_delays": list(config.delays[1:]),
        "image_norm": {"kind": adapters.image_norm, "eps": adapters.image_norm_eps},
    }


def encoder_config(config: config_lib.SiglipConfig) -> dict[str, Any]:
    """Returns `siglip448.config`, with this encoder's sizes."""
    return {
        "model_type": "siglip_vision_model",
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "projection_dim": 2 * config.width,  # unused
        "image_size": config.image_size,
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
    }


def _feedforward(width: int, hidden: int) -> int:
    """The nominal width whose two thirds are `hidden`; upstream special-cases 4 x width."""
    nominal = math.ceil(1.5 * hidden)
    return nominal + 1 if nominal == 4 * width else nominal


def _mlx_feedforward(width: int, hidden: int) -> int:
    """As `_feedforward`, where 4 x width means 11/4 x width."""
    return 4 * width if hidden == 11 * width // 4 else _feedforward(width, hidden)


def _scale(feedforward: int, width: int) -> float:
    """A factor with int(factor * width) == feedforward in floating point."""
    exact = feedforward / width
    return exact if int(exact * width) == feedforward else (feedforward + 0.5) / width


def _nearest_encoder(image_size: int) -> int:
    return min((224, 448, 896), key=lambda size: abs(size - image_size))
