"""Names of the files in an export folder: what each upstream runtime opens, and mvjax's own four."""

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
CODEC_CONFIG = "codec.json"  # sizes of a codec that are not the release's
TALK = "talk.json"  # how to talk to the model unless told otherwise

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


def owned(target: str) -> tuple[str, ...]:
    """Returns every name that an export to a target may write, the certificate first."""
    weights = (MODEL, *QUANTIZED[target].values())
    more = {
        "torch": (TORCH_LINK,),
        "mlx": (),
        "candle": tuple(vision_file(Path(name)).name for name in QUANTIZED["candle"].values()),
    }[target]
    configs = dict.fromkeys(config(target, quantized=q8) for q8 in (False, True))
    ours = (CODEC_CONFIG, TALK)
    return (CERTIFICATE, *weights, *more, CODEC, *ours, TOKENIZER, CARD, *configs, ENCODER_CONFIG)


def target_of(folder: Path) -> str | None:
    """Returns which target the export in a folder is for; None if there is none."""
    if not (folder / ENCODER_CONFIG).is_file():
        return None
    names = {config(t, quantized=q8): t for t in QUANTIZED for q8 in (True, False)}
    return next((t for name, t in names.items() if (folder / name).is_file()), None)


def vision_file(gguf: Path) -> Path:
    """Returns the file with the image part beside a GGUF: X.q8_0.gguf -> X_vision_tower_..."""
    return gguf.with_name(gguf.name.rsplit(".", 2)[0] + _VISION_SUFFIX)
