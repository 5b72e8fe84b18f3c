"""Names of the files in an export folder: what each upstream runtime opens, and mvjax's own two."""

from __future__ import annotations

from pathlib import Path

MODEL = "model.safetensors"  # the weights, unless they are quantized
QUANTIZED = {  # {target: {quantization: the weights}}
    "torch": {},
    "mlx": {"q8": "model.q8.safetensors", "q4": "model.q4.safetensors"},
    "candle": {"q8_0": "model.q8_0.gguf"},
}
GGUF_SUFFIX = ".gguf"
_VISION_SUFFIX = "_vision_tower_unquant.safetensors"
TORCH_LINK = "model_pt.safetensors"  # what kyuteye_pt opens when its config names no repository

CODEC = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER = "tokenizer_spm_32k_3.model"

TORCH_CONFIG = "moshika-vis.yaml"
MLX_CONFIG = "config.json"
CANDLE_CONFIG = "config-moshika-vis.json"
CANDLE_QUANTIZED_CONFIG = "config-moshika-vis-q8.json"
ENCODER_CONFIG = "siglip448.config"  # the name that kyuteye_mlx opens, whatever the sizes

CARD = "README.md"
CERTIFICATE = "certificate.json"


def config(target: str, *, quantized: bool) -> str:
    """Returns the name of a target's config file."""
    candle = CANDLE_QUANTIZED_CONFIG if quantized else CANDLE_CONFIG
    return {"torch": TORCH_CONFIG, "mlx": MLX_CONFIG, "candle": candle}[target]


def vision_file(gguf: Path) -> Path:
    """Returns the file with the image part beside a GGUF: X.q8_0.gguf -> X_vision_tower_..."""
    return gguf.with_name(gguf.name.rsplit(".", 2)[0] + _VISION_SUFFIX)
