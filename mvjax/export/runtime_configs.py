"""The config files that each upstream runtime reads, with the sizes of this model."""

from __future__ import annotations

import math
from typing import Any

from mvjax import gates
from mvjax.config import schema
from mvjax.export import matrix, targets
from mvjax.weights import file_names, quantize

OWN = "mvjax"  # key of what upstream does not ask for, and mvjax's own runtimes need

_DEPTH_NORMS: dict[schema.NormKind, str] = {
    "variance": "rms_norm_f32",
    "mean_square": "real_rms_norm_f32",
}
_CANDLE_GATES: dict[gates.Gate, str] = {
    gates.Constant("tanh"): "ConstantGatedTanh",
    gates.Constant("sigmoid"): "ConstantGatedSigmoid",
}
_PORT = 8008


def torch_config(config: schema.ModelConfig) -> dict[str, Any]:
    """Returns `moshika-vis.yaml`: the keys of the release, then the sizes of MoshiConfig."""
    backbone, depformer, adapters = config.backbone, config.depformer, config.cross_attention
    gate, scope = adapters.gate, adapters.scope
    feedforward = _feedforward(backbone.width, backbone.hidden)
    return {
        "hf_repo": None,
        "model": file_names.MODEL,
        "mimi_codec": file_names.CODEC,
        "text_tokenizer": file_names.TOKENIZER,
        "encoder_name": f"siglip_gemma2_{_nearest_encoder(config.siglip.image_size)}",
        "image_size": config.siglip.image_size,
        "interpolation": "bicubic",
        "num_crossattended_tokens": -1,
        "num_extra_tokens": 0,
        "add_boi_eoi": False,
        "align_img_and_speech_tokens_dim": True,
        "norm_xa": matrix.TORCH_NORMS[adapters.image_norm, adapters.image_norm_eps],
        "norm_extra": None,
        "xa_dim": adapters.dim,
        "xa_gating": "none" if gate is None else gate.activation,
        "xa_conditional_gating": isinstance(gate, gates.Conditional),
        "xa_shared": True,
        "xa_gate_shared": adapters.share_gate,
        "xa_layers": list(adapters.layers),
        "xa_start": scope.start,  # the release says "start", where its server stops (reference 5.5)
        "xa_end": "end" if scope.frames is None else scope.frames,
        "xa_step": 1,
        "xa_delay": 0,
        # MoshiConfig; `norm` reaches the depth transformer only (reference 1.4)
        "dim": backbone.width,
        "num_layers": backbone.layers,
        "num_heads": backbone.heads,
        "hidden_scale": _scale(feedforward, backbone.width),
        "context": backbone.window,
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


def mlx_config(config: schema.ModelConfig, mode: quantize.Mode | None = None) -> dict[str, Any]:
    """Returns `config.json`: the fields of kyuteye_mlx's LmConfig, files, quantization, image norm."""
    backbone, depformer, adapters = config.backbone, config.depformer, config.cross_attention
    start = config.cross_attention.scope.start
    scheme = None if mode is None else quantize.SCHEMES[mode]
    return {
        "moshi_name": targets.weight_file("mlx", mode),
        "mimi_name": file_names.CODEC,
        "tokenizer_name": file_names.TOKENIZER,
        "quantization": None
        if scheme is None
        else {"bits": scheme.bits, "group_size": scheme.group},
        "transformer": {
            "d_model": backbone.width,
            "num_heads": backbone.heads,
            "num_layers": backbone.layers,
            "dim_feedforward": _mlx_feedforward(backbone.width, backbone.hidden),
            "context": backbone.window - 1,  # a frame itself comes on top (reference 2.4)
            "max_period": backbone.rope_base,
            "norm": "rms_norm",
            "cross_attention": True,
            "xa_shared": True,
            "xa_gating": "none" if adapters.gate is None else "sigmoid",
            "xa_start": start + 1 if start else 0,  # compared after counting (reference 5.4)
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
        "image_norm": _image_norm(config),
    }


def candle_config(
    config: schema.ModelConfig, quantization: targets.Quantization | None = None
) -> dict[str, Any]:
    """Returns the JSON of kyuteye_rs's server, and under "mvjax" the sizes that its source holds."""
    backbone, depformer, adapters = config.backbone, config.depformer, config.cross_attention
    gate = adapters.gate
    if isinstance(gate, gates.Conditional):
        bias = "LearnableBias" if gate.bias else ""
        gating = f"ConditionalGated{gate.activation.capitalize()}{bias}"
    else:
        gating = "Normal" if gate is None else _CANDLE_GATES[gate]
    return {
        "instance_name": "mvjax",
        "hf_repo": "",
        "lm_model_file": targets.weight_file("candle", quantization),
        "text_tokenizer_file": file_names.TOKENIZER,
        "mimi_model_file": file_names.CODEC,
        "log_dir": "./moshi-logs",
        "mimi_num_codebooks": config.codebooks_out,
        "static_dir": "./client/dist",
        "addr": "0.0.0.0",
        "port": _PORT,
        "cert_dir": ".",
        "lm_config": {
            "acoustic_delay": max(config.delays),
            "generated_audio_codebooks": config.codebooks_out,
            "input_audio_codebooks": config.codebooks - 1 - config.codebooks_out,
            "audio_vocab_size": config.audio_vocab + 1,
            "text_eop_token": config.text_epad,
            "text_pad_token": config.text_pad,
            "text_start_token": config.text_vocab,
        },
        "image_prefix_backbone": f"Siglip{_nearest_encoder(config.siglip.image_size)}",
        "image_prefix_use_rms_norm": True,
        "cross_attention_gating": gating,
        "cross_attention_in_dims": adapters.dim,
        OWN: {
            "num_layers": backbone.layers,
            "num_heads": backbone.heads,
            "context": backbone.window - 1,  # as kyuteye_rs counts (reference 2.4)
            "max_period": backbone.rope_base,
            "depformer_num_layers": depformer.layers,
            "depformer_num_heads": depformer.heads,
            "delays": list(config.delays),
            "xa_start": config.cross_attention.scope.start,
            "image_norm": _image_norm(config),
        },
    }


def encoder_config(config: schema.SiglipConfig) -> dict[str, Any]:
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


def _image_norm(config: schema.ModelConfig) -> dict[str, Any]:
    adapters = config.cross_attention
    return {"kind": adapters.image_norm, "eps": adapters.image_norm_eps}


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
