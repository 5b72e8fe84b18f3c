"""Opens the frozen weight files of a run, in whatever format they are, and tells which files these are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mvjax import files as files_lib
from mvjax.config import schema
from mvjax.weights import big_vision, hf_siglip, kyutai, lazy, lora, safetensors_io

_NPZ = ".npz"
_ENCODER = "image/encoder/"


def open_weights(files: schema.FrozenFiles, model: schema.ModelConfig) -> dict[str, lazy.Stored]:
    """Returns {our path: leaf} of all that the files hold: backbone, depformer, image/encoder.

    Moshi keeps its stored dtype for a bfloat16 model, else it is float32; the encoder is float32.

    Raises:
      ValueError: naming a file, and every tensor in it that does not fit the config.
    """
    moshi = kyutai.open_moshi(
        files.moshi,
        model,
        dtype=None if model.dtype == "bfloat16" else np.float32,
        lora_path=files.moshi_lora,
        lora_scaling=files.lora_scaling,
    )
    encoder = open_siglip(files.siglip, model.siglip)
    return {**moshi, **{f"{_ENCODER}{path}": leaf for path, leaf in encoder.items()}}


def open_siglip(location: str | Path, config: schema.SiglipConfig) -> dict[str, lazy.Stored]:
    """Returns {path in `nn.siglip.Siglip`: leaf}: big_vision's npz, or Hugging Face's safetensors."""
    if _is_npz(location):
        return big_vision.open_siglip(location, config)
    return {**hf_siglip.open_siglip(location, config)}


def paths(files: schema.FrozenFiles) -> dict[str, list[Path]]:
    """Returns {name: local files} of the weights: moshi, siglip, and moshi_lora if there is one."""
    encoder, _ = big_vision.split_location(files.siglip)
    found = {
        "moshi": _parts(files_lib.resolve(files.moshi, names=files_lib.WEIGHTS)),
        "siglip": _parts(files_lib.resolve(encoder, names=files_lib.WEIGHTS)),
    }
    if files.moshi_lora is not None:
        found["moshi_lora"] = _parts(files_lib.resolve(files.moshi_lora, names=lora.NAMES))
    return found


def verify(files: schema.FrozenFiles) -> None:
    """Compares the files with the checksums that they carry (those that mvjax wrote do).

    Raises:
      ValueError: naming a file and every tensor in it whose bytes changed.
    """
    for parts in paths(files).values():
        for path in parts:
            if path.suffix != _NPZ:  # npz is checked by zip, as it is read
                safetensors_io.verify(path)


def _parts(path: Path) -> list[Path]:
    return [path] if path.suffix == _NPZ else safetensors_io.files(path)


def _is_npz(location: str | Path) -> bool:
    return big_vision.split_location(str(location))[0].endswith(_NPZ)
