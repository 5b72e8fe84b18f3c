"""The layout of `kyuteye_rs` (reference section 4.6): safetensors, or a q8_0 GGUF.

Differs from Kyutai's PyTorch layout: the depth transformer is one slice per step with the shared
norms copied into each, cross-attention has no `mha`, and a GGUF holds queries apart from keys and
values, since its blocks cannot be split. The Rust server takes the image part, unquantized, from a second
file beside the GGUF. By its size the released GGUF holds it, too, where nothing reads it; ours do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np

from mvjax import files
from mvjax.config import schema
from mvjax.weights import file_names, kyutai, lazy, leaf_view, mlx, rules, safetensors_io

NAMES = (*files.WEIGHTS, *file_names.QUANTIZED["candle"].values())
IMAGE = "image_prefix."
_FUSED = "transformer.layers.0.cross_attention.in_proj_weight"

_FROM_TORCH = (  # names of the backbone, adapters and image
    (r"llm\.(.*\.cross_attention\.)mha\.", r"\1"),
    (r"llm\.", ""),
    (r"audio_emb\.", "emb."),
)
_FROM_MLX = (  # names of the depth transformer
    (r"depformer\.slices\.(.*\.norm[12])\.weight", r"depformer.\1.alpha"),
    (r"depformer\.slices\.(.*\.in_proj)\.weight", r"depformer.\1_weight"),
    (r"depformer\.slices\.", "depformer."),
)


def open_candle(
    path: str | Path, config: schema.ModelConfig, *, dtype: np.dtype | type | None = np.float32
) -> dict[str, leaf_view.LeafView]:
    """Returns {our path: leaf view} of a safetensors file, or of a GGUF with its vision file.

    A GGUF is read with the vision file beside its location, or where there is none, with its own image
    tensors. A dtype of None keeps the file's (float32 for what a GGUF holds).

    Raises:
      ValueError: naming the file and every missing, unexpected or misshapen tensor.
    """
    file = files.resolve(path, names=NAMES)
    if file.suffix == file_names.GGUF_SUFFIX:
        tensors = _with_vision(file, _vision_beside(path, file))
    else:
        tensors = safetensors_io.tensors(file)
    return from_tensors(tensors, config, dtype=dtype, place=str(file))


def verify(path: str | Path) -> None:
    """Compares all files of a location of `open_candle` with the checksums that they carry.

    Raises:
      ValueError: naming a file and every tensor in it whose bytes changed.
    """
    file = files.resolve(path, names=NAMES)
    if file.suffix != file_names.GGUF_SUFFIX:
        safetensors_io.verify(file)
        return
    gguf_io().verify(file)
    if (vision := _vision_beside(path, file)) is not None:
        safetensors_io.verify(vision)


def from_tensors(
    tensors: Mapping[str, lazy.LazyTensor],
    config: schema.ModelConfig,
    *,
    dtype: np.dtype | type | None = np.float32,
    place: str,
) -> dict[str, leaf_view.LeafView]:
    """Returns {our path: leaf view} for {name in the file: tensor}; arguments as `open_candle`."""
    table, sizes = candle_rules(config, split=_FUSED not in tensors), kyutai.sizes(config)
    return rules.leaf_views(tensors, table, sizes, place=place, dtype=dtype)


def write(path: Path, tensors: Mapping[str, lazy.LazyTensor]) -> None:
    """Writes {name in the file: tensor}: safetensors, or if `path` ends in .gguf q8_0 and its vision file.

    Raises:
      ModuleNotFoundError: if the `gguf` package is needed and not installed, with the remedy.
    """
    if path.suffix == file_names.GGUF_SUFFIX:
        language, image = _language_and_image(tensors)
        gguf_io().write(path, language)
        safetensors_io.write(file_names.vision_file(path), image)
    else:
        safetensors_io.write(path, tensors)


def open_gguf(path: Path) -> dict[str, lazy.LazyTensor]:
    """Returns {name: tensor} of a GGUF; the image part is from the vision file if that is beside it."""
    return _with_vision(path, _vision_beside(path, path))


def round_trip(tensors: Mapping[str, lazy.LazyTensor]) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors that `open_gguf` gives back after `write`: q8_0, the image part bfloat16."""
    language, image = _language_and_image(tensors)
    return {n: gguf_io().q8_round_trip(tensor) for n, tensor in language.items()} | image


def gguf_io() -> ModuleType:
    """Returns the module `weights.gguf_io`, imported when a GGUF is read or written.

    Raises:
      ModuleNotFoundError: if the `gguf` package is not installed, with the remedy.
    """
    try:
        from mvjax.weights import gguf_io
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"GGUF files need {error.name!r}: pip install 'mvjax[candle]'"
        ) from error
    return gguf_io


def candle_rules(config: schema.ModelConfig, *, split: bool) -> list[rules.Rule]:
    """Returns the table, for designs that kyuteye_rs runs: projections shared by all layers.

    `split` puts queries apart from keys and values, as a GGUF must have them.
    """
    table = [
        dataclasses.replace(rule, name=rules.renamed(rule.name, _FROM_TORCH))
        for rule in kyutai.vis_rules(config)
        if "depformer/" not in rule.leaves[0]
    ]
    for rule in mlx.depformer_rules(config):
        name = rules.renamed(rule.name, _FROM_MLX)
        axes = f"{rule.axes} -> 1 1 d_" if name.endswith(".alpha") else rule.axes
        table.append(dataclasses.replace(rule, name=name, axes=axes))
    if split and any(rule.name == _FUSED for rule in table):
        q, k, v = (f"xa/{letter}/kernel" for letter in "qkv")
        table = [rule for rule in table if rule.name != _FUSED]
        table.append(rules.Rule(q, f"{_FUSED}_q", "D N H -> (N H) D"))
        table.append(rules.Rule((k, v), f"{_FUSED}_kv", "2 D N H -> (2 N H) D"))
    return table


def _language_and_image(
    tensors: Mapping[str, lazy.LazyTensor],
) -> tuple[dict[str, lazy.LazyTensor], dict[str, lazy.LazyTensor]]:
    """Returns the tensors of a GGUF, and those of the file beside it in bfloat16."""
    image = {n: lazy.cast(t, ml_dtypes.bfloat16) for n, t in tensors.items() if n.startswith(IMAGE)}
    return {n: t for n, t in tensors.items() if n not in image}, image


def _with_vision(path: Path, vision: Path | None) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors of a GGUF, the image part from the vision file if there is one."""
    tensors = gguf_io().tensors(path)
    if vision is not None:
        return {**tensors, **safetensors_io.tensors(vision)}
    if not any(name.startswith(IMAGE) for name in tensors):
        raise ValueError(
            f"{path}: holds no {IMAGE}* tensors, and {file_names.vision_file(path)} does not exist; fetch it"
        )
    return tensors


def _vision_beside(location: str | Path, path: Path) -> Path | None:
    """Returns the vision file of the GGUF at a location, fetched if that is on the hub."""
    text = str(location)
    if not text.startswith(files.HUB_PREFIX):
        return file_names.vision_file(path) if file_names.vision_file(path).is_file() else None
    repository = text.removesuffix(f"/{path.name}")
    return files.resolve(f"{repository}/{file_names.vision_file(path).name}")
