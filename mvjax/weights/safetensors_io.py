"""Reads and writes safetensors files as {name: numpy array}; bfloat16 through ml_dtypes."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

Tensors = dict[str, np.ndarray]

_HEADER_LENGTH = struct.calcsize("<Q")
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format


def read(path: Path, *, prefix: str = "") -> Tensors:
    """Returns the tensors whose name starts with `prefix`, names unchanged.

    Raises:
      ValueError: if the file is truncated or corrupt, naming it and the tensors that are cut off.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        raise ValueError(_explain(path, error)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the text metadata of a file; raises as `read`."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(_explain(path, error)) from error


def write(
    path: Path, tensors: Mapping[str, np.ndarray], *, metadata: dict[str, str] | None = None
) -> None:
    """Writes a file whole or not at all: a partial write never replaces an existing file.

    Raises:
      OSError: naming the file, when the disk is full or the folder cannot be written.
    """
    # The format stores raw bytes: anything but C order would be written scrambled.
    dense = {name: np.require(t, requirements="C") for name, t in tensors.items()}
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(dense, partial, metadata=metadata)
        os.replace(partial, path)
    except (OSError, safetensors.SafetensorError) as error:
        partial.unlink(missing_ok=True)
        need = sum(t.nbytes for t in dense.values())
        raise OSError(
            f"{path}: could not write {need:,} bytes: {error}; check free space and permissions"
        ) from error


def _explain(path: Path, error: Exception) -> str:
    """Says which tensors a truncated file lacks, as far as its header can be read."""
    size = path.stat().st_size
    fact = f"{path}: not a readable safetensors file ({size:,} bytes): {error}"
    with path.open("rb") as file:
        head = file.read(_HEADER_LENGTH)
        if len(head) < _HEADER_LENGTH:
            return f"{fact}; the file is cut off before its header. Fetch or make it again."
        (length,) = struct.unpack("<Q", head)
        if length > min(size, _MAX_HEADER):
            return f"{fact}; its header is cut off or not a header. Fetch or make it again."
        try:
            header = json.loads(file.read(length))
            ends = {n: e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return f"{fact}; its header is corrupt. Fetch or make it again."
    start = _HEADER_LENGTH + length
    cut = sorted(name for name, end in ends.items() if start + end > size)
    if cut:
        expected = start + max(ends.values())
        return f"{fact}; expected {expected:,} bytes, so these tensors are cut off: {cut}"
    return f"{fact}. Fetch or make it again."
