"""The config files that each upstream runtime reads, with the sizes of this model."""

from __future__ import annotations

import math
from typing import Any

from mvjax.config import schema
from mvjax.export import gate_words, matrix, server_matrix, serving, targets
from mvjax.weights import file_names, quantize

OWN = "mvjax"  # key of what upstream does not ask for, and mvjax's own runtimes need
TORCH_START = "mvjax_xa_start"  # the same in YAML, which upstream flattens; absent: 0

_DEPTH_NORMS: dict[schema.NormKind, str] = {
    "variance": "rms_norm_f32",
    "mean_square": "real_rms_norm_f32",
}
_PORT = 8008


def contents(
    config: schema.ModelConfig,
    target: targets.Target,
    quantization: targets.Quantization | None = None,
) -> dict[str, dict[str, Any]]:
    """Returns {name of the file: its mapping} of an export's config files: the runtime's, the encoder's."""
    if target == "torch":
        content = torch_config(config)
    elif target == "mlx":
        assert quantization != "q8_0"
        content = mlx_config(config, quantization)
    else:
        content = candle_config(config, quantization)
    return {
        file_names.config(target, quantized=quantization is not None): content,
        file_names.ENCODER_CONFIG: encoder_config(config.siglip),
    }


def torch_config(config: schema.ModelConfig) -> dict[str, Any]:
    """Returns `moshika-vis.yaml`: the keys of the release, then the sizes of MoshiConfig."""
    backbone, depformer, adapters = config.backbone, config.depformer, config.cross_attention
    gating, conditional = gate_words.TORCH_GATES[_gate(config)]
    scope = adapters.scope
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
        "xa_gating": gating,
        "xa_conditional_gating": conditional,
        "xa_shared": True,
        "xa_gate_shared": adapters.share_gate,
        "xa_layers": list(adapters.layers),
        # The server passes no image before the frame that the client's URL names, and layers count from
        # there: a start here would count twice. Of the release's "start", the server makes an error.
        "xa_start": 0,
        **({TORCH_START: scope.start} if scope.start else {}),
        "xa_end": "end" if scope.frames is None else scope.frames,
        "xa_step": 1,
        "xa_delay": 0,
        # MoshiConfig; `norm` reaches the depth transformer only
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
    backbone, depformer = config.backbone, config.depformer
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
            "context": backbone.window - 1,  # a frame itself comes on top
            "max_period": backbone.rope_base,
            "norm": "rms_norm",
            "cross_attention": True,
            "xa_shared": True,
            "xa_gating": gate_words.MLX_GATES[_gate(config)],
            "xa_start": start + 1 if start else 0,  # compared after counting
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
        "cross_attention_gating": gate_words.CANDLE_GATES[_gate(config)],
        "cross_attention_in_dims": adapters.dim,
        OWN: {
            "num_layers": backbone.layers,
            "num_heads": backbone.heads,
            "context": backbone.window - 1,  # as kyuteye_rs counts
            "max_period": backbone.rope_base,
            "depformer_num_layers": depformer.layers,
            "depformer_num_heads": depformer.heads,
            "delays": list(config.delays),
            "xa_start": config.cross_attention.scope.start,
            "image_norm": _image_norm(config),
            "client_asks": serving.path(config),
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


def _gate(config: schema.ModelConfig) -> str:
    gate = config.cross_attention.gate
    name = gate_words.name(gate)
    if name is None:
        raise ValueError(f"cross_attention.gate={gate!r}: no upstream runtime has it")
    return name


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
    return min(server_matrix.IMAGE_SIZES, key=lambda size: abs(size - image_size))
