"""Opens the frozen weight files of a run, in any supported format, and identifies them by SHA-256.

A start reads each file from storage once: `identity` does, from start to end, for its SHA-256 and the CRC-32
of its tensors together. Placing the weights then copies the slices that this process's devices need out of
the page cache (6 MB of a file of 2.1 GB came from the disk again), unless the host's memory is smaller.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mvjax import files as files_lib
from mvjax import hub
from mvjax.config import beside_moshi, schema
from mvjax.weights import big_vision, checksums, hf_siglip, kyutai, lazy, lora, safetensors_io

Identity = dict[str, dict[str, str]]  # {"moshi": {"path": location, "sha256": hash}, ...}

_NPZ = ".npz"


def open_weights(
    files: schema.FrozenFiles, model: schema.ModelConfig
) -> dict[str, lazy.LazyTensor]:
    """Returns {our path: leaf} of all that the files hold: backbone, depformer, image/encoder.

    Moshi keeps its stored dtype for a bfloat16 model, else it is float32; the encoder is float32.
    Checksums are not compared; `identity` does that.

    Raises:
      ValueError: naming a file, and every tensor in it, or key of the config.json beside Moshi, that does
        not fit the config.
    """
    beside_moshi.check(files.moshi, model)
    moshi = kyutai.open_moshi(
        files.moshi,
        model,
        dtype=None if model.dtype == "bfloat16" else np.float32,
        lora_path=files.moshi_lora,
        lora_scaling=files.lora_scaling,
    )
    encoder = open_siglip(files.siglip, model.siglip)
    return {**moshi, **{f"image/encoder/{path}": leaf for path, leaf in encoder.items()}}


def open_siglip(location: str | Path, config: schema.SiglipConfig) -> dict[str, lazy.LazyTensor]:
    """Returns {path in `nn.siglip.Siglip`: leaf}: big_vision's npz, or Hugging Face's safetensors."""
    if big_vision.split_location(str(location))[0].endswith(_NPZ):
        return big_vision.open_siglip(location, config)
    return {**hf_siglip.open_siglip(location, config)}


def paths(files: schema.FrozenFiles) -> dict[str, list[Path]]:
    """Returns {name: local files} of the weights: moshi, siglip, and moshi_lora if there is one."""
    encoder, _ = big_vision.split_location(files.siglip)
    local = {
        "moshi": _parts(files_lib.resolve(files.moshi, names=files_lib.WEIGHTS)),
        "siglip": _parts(files_lib.resolve(encoder, names=files_lib.WEIGHTS)),
    }
    if files.moshi_lora is not None:
        local["moshi_lora"] = _parts(files_lib.resolve(files.moshi_lora, names=lora.NAMES))
    return local


def identity(files: schema.FrozenFiles) -> Identity:
    """Returns location and SHA-256 of each weight; the files are verified in the same pass.

    The hash of a weight in one file is what `sha256sum` prints; in several, their `files.joint_hash`. A LoRA
    file changes weights by its scaling too, so that has an entry of its own.

    Raises:
      ValueError: naming a file and every tensor in it whose bytes changed, or a file in the hub's cache
        that is not the one that the hub listed.
    """
    locations = {"moshi": files.moshi, "siglip": files.siglip, "moshi_lora": files.moshi_lora}
    identities: Identity = {}
    for name, parts in paths(files).items():
        digests = [file_hash(path) for path in parts]
        digest = digests[0] if len(digests) == 1 else files_lib.joint_hash(digests)
        identities[name] = {"path": str(locations[name]), "sha256": digest}
    if files.moshi_lora is not None:
        scaling = lora.scaling(paths(files)["moshi_lora"][0], files.lora_scaling)
        digest = hashlib.sha256(repr(scaling).encode()).hexdigest()
        identities["lora_scaling"] = {"path": f"{scaling:g}", "sha256": digest}
    return identities


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of one weight file, verified in the same pass; errors as `identity`."""
    if path.suffix == _NPZ:  # its values are checked by zip, as they are read
        return hub.check_hash(path, files_lib.file_hash(path))
    digest, changed = safetensors_io.hash_and_compare(path)
    hub.check_hash(path, digest)
    checksums.refuse_changed(path, changed)
    return digest


def _parts(path: Path) -> list[Path]:
    return [path] if path.suffix == _NPZ else safetensors_io.files(path)
