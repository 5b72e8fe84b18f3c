"""Reads the config of an export folder, in each of the three layouts: sizes, delays, gate and norms."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import yaml

from mvjax import run_folder
from mvjax.runtimes import interface
from mvjax.weights import file_names

Layout = Literal["torch", "mlx", "candle"]
NormKind = Literal["mean_square", "variance"]
GateKind = Literal["none", "constant", "conditional"]
Activation = Literal["sigmoid", "tanh"]

_CANDLE_CONFIGS = (file_names.CANDLE_CONFIG, file_names.CANDLE_QUANTIZED_CONFIG)
_CANDLE_GATES: dict[str, tuple[GateKind, Activation]] = {
    "Normal": ("none", "sigmoid"),
    "ConstantGatedTanh": ("constant", "tanh"),
    "ConstantGatedSigmoid": ("constant", "sigmoid"),
    "ConditionalGatedTanh": ("conditional", "tanh"),
    "ConditionalGatedSigmoid": ("conditional", "sigmoid"),
    "ConditionalGatedTanhLearnableBias": ("conditional", "tanh"),
    "ConditionalGatedSigmoidLearnableBias": ("conditional", "sigmoid"),
}
_TORCH_NORMS: dict[str, tuple[NormKind, float]] = {
    "rms_norm": ("variance", 1e-5),
    "rms_norm_f32": ("variance", 1e-8),
    "real_rms_norm": ("mean_square", 1e-5),
    "real_rms_norm_f32": ("mean_square", 1e-8),
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The SigLIP image encoder; widths come from its tensors."""

    layers: int
    heads: int
    patch: int
    image_size: int
    eps: float


@dataclasses.dataclass(frozen=True)
class Quantized:
    """How the codes of a quantized MLX file were made."""

    bits: int
    group_size: int


@dataclasses.dataclass(frozen=True)
class FrameRange:
    """Frames that see the image."""

    start: int
    frames: int | None  # None: to the end

    def __contains__(self, frame: int) -> bool:
        """Whether a frame sees it."""
        return self.start <= frame and (self.frames is None or frame < self.start + self.frames)


@dataclasses.dataclass(frozen=True)
class ExportedConfig:
    """What the tensors alone do not say, in one form for all layouts."""

    weights: Path
    codec: Path
    tokenizer: Path
    layers: int
    heads: int
    context: int  # frames a query may look back on, itself included
    rope_base: float
    depth_layers: int
    depth_heads: int
    depth_norm: tuple[NormKind, float]
    image_norm: tuple[NormKind, float]
    gate: GateKind
    activation: Activation
    image_layers: tuple[int, ...]  # those with cross-attention
    scope: FrameRange
    delays: tuple[int, ...]
    codebooks_out: int
    text_vocab: int
    audio_vocab: int
    encoder: EncoderConfig
    quantized: Quantized | None = None

    @property
    def sizes(self) -> interface.Sizes:
        """What a caller of the runtime needs to know."""
        return interface.Sizes(
            delays=self.delays,
            codebooks_out=self.codebooks_out,
            text_vocab=self.text_vocab,
            audio_vocab=self.audio_vocab,
            image_size=self.encoder.image_size,
        )


def layout(folder: Path) -> Layout:
    """Returns which upstream runtime a folder is laid out for.

    Raises:
      ValueError: if it is no export folder, or holds the configs of several.
    """
    found = _layouts(folder)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{folder}: expected the export to one runtime, found the config files of {' and '.join(found)};"
            " export again, into a folder of its own"
        )
    if run_folder.is_run(folder):
        raise ValueError(f"{folder} is a run folder: export it first, with `mvjax export`")
    raise ValueError(
        f"{folder}: expected {file_names.TORCH_CONFIG} (torch), {file_names.MLX_CONFIG} (mlx) or"
        f" {file_names.CANDLE_CONFIG} (candle), found none of them; give a folder that `mvjax export` wrote"
        + run_folder.nearby(folder, is_export)
    )


def runtime(folder: Path) -> Literal["torch", "mlx"]:
    """Returns which of mvjax's runtimes runs a folder; errors as `layout`."""
    return "mlx" if layout(folder) == "mlx" else "torch"


def is_export(folder: Path) -> bool:
    """Whether a folder has one of the layouts."""
    return bool(_layouts(folder))


def _layouts(folder: Path) -> list[Layout]:
    found: dict[Layout, bool] = {
        "candle": is_candle(folder),
        "torch": (folder / file_names.TORCH_CONFIG).is_file(),
        "mlx": (folder / file_names.MLX_CONFIG).is_file() and not run_folder.is_run(folder),
    }
    return [name for name, there in found.items() if there]


def read(folder: Path) -> ExportedConfig:
    """Reads a folder in the layout that it has; errors as `layout` and `read_torch`."""
    return {"torch": read_torch, "mlx": read_mlx, "candle": read_candle}[layout(folder)](folder)


def read_torch(folder: Path) -> ExportedConfig:
    """Reads a folder in the layout of kyuteye_pt.

    Raises:
      ValueError: if a file or a key is missing, naming both.
    """
    path = folder / file_names.TORCH_CONFIG
    c = _Keys(path, _yaml(path))
    gating = c["xa_gating"]
    conditional = "conditional" if c["xa_conditional_gating"] else "constant"
    return ExportedConfig(
        weights=folder / c["model"],
        codec=folder / c["mimi_codec"],
        tokenizer=folder / c["text_tokenizer"],
        layers=c["num_layers"],
        heads=c["num_heads"],
        context=c["context"],
        rope_base=c["max_period"],
        depth_layers=c["depformer_num_layers"],
        depth_heads=c["depformer_num_heads"],
        depth_norm=_TORCH_NORMS[c["norm"]],
        image_norm=_TORCH_NORMS[c["norm_xa"]],
        gate="none" if gating == "none" else conditional,
        activation="sigmoid" if gating == "none" else gating,
        image_layers=tuple(c["xa_layers"]) or tuple(range(c["num_layers"])),
        scope=FrameRange(
            c.values.get("mvjax_xa_start", c["xa_start"]),
            None if c["xa_end"] == "end" else c["xa_end"],
        ),
        delays=tuple(c["delays"]),
        codebooks_out=c["dep_q"],
        text_vocab=c["text_card"],
        audio_vocab=c["audio_card"],
        encoder=_read_encoder(folder),
    )


def read_mlx(folder: Path) -> ExportedConfig:
    """Reads a folder in the layout of kyuteye_mlx; errors as `read_torch`."""
    path = folder / file_names.MLX_CONFIG
    c = _Keys(path, _json(path))
    backbone, depformer = _Keys(path, c["transformer"]), _Keys(path, c["depformer"])
    depth, norm = _Keys(path, depformer["transformer"]), _Keys(path, c["image_norm"])
    return ExportedConfig(
        weights=folder / c["moshi_name"],
        codec=folder / c["mimi_name"],
        tokenizer=folder / c["tokenizer_name"],
        layers=backbone["num_layers"],
        heads=backbone["num_heads"],
        context=backbone["context"] + 1,  # upstream adds the frame itself
        rope_base=backbone["max_period"],
        depth_layers=depth["num_layers"],
        depth_heads=depth["num_heads"],
        depth_norm=("mean_square", 1e-8),
        image_norm=(norm["kind"], norm["eps"]),
        gate="none" if backbone["xa_gating"] == "none" else "conditional",
        activation="sigmoid",
        image_layers=tuple(range(backbone["num_layers"])),
        # upstream counts before it compares
        scope=FrameRange(max(backbone["xa_start"] - 1, 0), None),
        delays=(0, *c["audio_delays"]),
        codebooks_out=depformer["num_slices"],
        text_vocab=c["text_out_vocab_size"],
        audio_vocab=c["audio_vocab_size"] - 1,
        encoder=_read_encoder(folder),
        quantized=None if c["quantization"] is None else Quantized(**c["quantization"]),
    )


def is_candle(folder: Path) -> bool:
    """Whether a folder is in the layout of kyuteye_rs."""
    return any((folder / name).is_file() for name in _CANDLE_CONFIGS)


def read_candle(folder: Path) -> ExportedConfig:
    """Reads a folder in the layout of kyuteye_rs, with the key of mvjax; errors as `read_torch`."""
    present = [name for name in _CANDLE_CONFIGS if (folder / name).is_file()]
    path = folder / (present or _CANDLE_CONFIGS)[0]
    c = _Keys(path, _json(path))
    lm, own = _Keys(path, c["lm_config"]), _Keys(path, c["mvjax"])
    norm = _Keys(path, own["image_norm"])
    if c["cross_attention_gating"] not in _CANDLE_GATES:
        raise ValueError(
            f"{path}: cross_attention_gating: expected one of {list(_CANDLE_GATES)}, got"
            f" {c['cross_attention_gating']!r}; export again"
        )
    gate, activation = _CANDLE_GATES[c["cross_attention_gating"]]
    return ExportedConfig(
        weights=folder / c["lm_model_file"],
        codec=folder / c["mimi_model_file"],
        tokenizer=folder / c["text_tokenizer_file"],
        layers=own["num_layers"],
        heads=own["num_heads"],
        context=own["context"] + 1,  # upstream adds the frame itself
        rope_base=own["max_period"],
        depth_layers=own["depformer_num_layers"],
        depth_heads=own["depformer_num_heads"],
        depth_norm=("mean_square", 1e-8),
        image_norm=(norm["kind"], norm["eps"]),
        gate=gate,
        activation=activation,
        image_layers=tuple(range(own["num_layers"])),
        scope=FrameRange(own["xa_start"], None),
        delays=tuple(own["delays"]),
        codebooks_out=lm["generated_audio_codebooks"],
        text_vocab=lm["text_start_token"],
        audio_vocab=lm["audio_vocab_size"] - 1,
        encoder=_read_encoder(folder),
    )


class _Keys:
    """A mapping that says which file lacks a key."""

    def __init__(self, path: Path, values: Any) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a mapping, got {values!r:.80}; export again")
        self.path, self.values = path, values

    def __getitem__(self, key: str) -> Any:
        if key not in self.values:
            raise ValueError(f"{self.path}: key {key!r} is missing; export again")
        return self.values[key]


def _read_encoder(folder: Path) -> EncoderConfig:
    path = folder / file_names.ENCODER_CONFIG
    c = _Keys(path, _json(path))
    return EncoderConfig(
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        patch=c["patch_size"],
        image_size=c["image_size"],
        eps=c["layer_norm_eps"],
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}; export again") from error


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fact = " ".join(str(error).split())
        raise ValueError(f"{path}: not YAML: {fact}; export again") from error


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: missing, so {path.parent} is not an export folder; export again")
    return path.read_text()
