"""Reads and writes GGUF files with q8_0 weights, through the `gguf` package.

As candle's own `tensor-tools quantize`: matrices whose rows are whole blocks of 32 become q8_0
(a float16 scale and 32 int8 codes), and everything else float32.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jaxtyping import Float32, UInt8

from mvjax.weights import checksums, lazy

ARCHITECTURE = "moshi-vis"  # candle asks for none, the format for one
BLOCK = 32  # values that share a scale
_Q8_0 = gguf.GGMLQuantizationType.Q8_0
_SCALE_BYTES = 2
_BEFORE_CHECKSUMS = 2**12  # bytes: more than a header has before them


def quantized(shape: tuple[int, ...]) -> bool:
    """Returns whether a tensor of this shape is stored as q8_0."""
    return len(shape) == 2 and shape[1] % BLOCK == 0


def quantize(weight: Float32[np.ndarray, "out in"]) -> UInt8[np.ndarray, "out bytes"]:
    """Returns the q8_0 blocks of a matrix; those of a dequantized one are its own again.

    Differs from ggml: where the scale is too small for float16, the codes, too, are zero.

    Raises:
      ValueError: if a value is too large for a float16 scale.
    """
    if not np.abs(weight).max(initial=0) <= 127 * float(np.finfo(np.float16).max):
        raise ValueError("q8_0: expected values up to 8.3 million, got larger ones or NaN")
    packed = gguf.quants.quantize(weight, _Q8_0)
    blocks = packed.reshape(-1, _SCALE_BYTES + BLOCK)
    lost = blocks[:, :_SCALE_BYTES].copy().view(np.float16)[:, 0] == 0
    blocks[lost, _SCALE_BYTES:] = 0
    return packed


def dequantize(packed: UInt8[np.ndarray, "out bytes"]) -> Float32[np.ndarray, "out in"]:
    """Returns the matrix, exactly."""
    return gguf.quants.dequantize(packed, _Q8_0)


def q8_round_trip(tensor: np.ndarray) -> Float32[np.ndarray, "*shape"]:
    """Returns what is left of a tensor in a file."""
    values = np.asarray(tensor, np.float32)
    return dequantize(quantize(values)) if quantized(values.shape) else values


@dataclasses.dataclass(frozen=True, eq=False)
class Q8RoundTrip:
    """A tensor as a file would hold it, made when it is read."""

    tensor: lazy.LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        """Float32, whatever is stored."""
        return np.dtype(np.float32)

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        """Rounds the whole, and returns a part."""
        whole = q8_round_trip(np.asarray(self.tensor[()]))
        return whole[lazy.slices(lazy.box(index, self.shape))]


@dataclasses.dataclass(frozen=True, eq=False)
class GgufTensor:
    """One tensor in a file, dequantized to float32 as far as it is read."""

    file: Path
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    data: np.ndarray  # bytes, mapped

    @property
    def dtype(self) -> np.dtype:
        """Float32, whatever is stored."""
        return np.dtype(np.float32)

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        """Returns a part; of a q8_0 matrix only the rows and blocks that it touches."""
        bounds = lazy.box(index, self.shape)
        if self.kind != _Q8_0 or not quantized(self.shape):
            whole = gguf.quants.dequantize(np.array(self.data), self.kind).reshape(self.shape)
            return whole[lazy.slices(bounds)]
        (top, bottom), (left, right) = bounds
        first, last = left // BLOCK, -(-right // BLOCK)
        size = _SCALE_BYTES + BLOCK
        rows = self.data.reshape(self.shape[0], -1)
        part = np.ascontiguousarray(rows[top:bottom, first * size : last * size])
        return dequantize(part)[:, left - first * BLOCK : right - first * BLOCK]


def tensors(path: Path) -> dict[str, GgufTensor]:
    """Returns {name: tensor}, in any of GGUF's plain or quantized kinds.

    Raises:
      ValueError: if the file is truncated or corrupt, naming it and the tensors that are cut off.
    """
    return _open(path).found


def verify(path: Path) -> int:
    """Compares tensors with the checksums in their file; returns how many had one.

    Raises:
      ValueError: naming the file and every tensor whose bytes are not those that were written.
    """
    reader = _open(path)
    field = reader.get_field(checksums.KEY)
    sums = {} if field is None else checksums.parse(field.contents(), place=str(path))
    found = {name: tensor for name, tensor in reader.found.items() if name in sums}
    bad = [name for name, tensor in found.items() if checksums.crc(tensor.data) != sums[name]]
    checksums.refuse_changed(path, bad)
    return len(found)


def write(path: Path, tensors: Mapping[str, lazy.LazyTensor]) -> None:
    """Writes a file whole or not at all; equal tensors give equal bytes. One is read at a time.

    Raises:
      ValueError: naming the tensor that cannot be quantized.
      OSError: naming the file, when the disk is full or the folder cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, tensors)
        os.replace(partial, path)
    except OSError as error:
        need = sum(_stored_bytes(tuple(tensor.shape)) for tensor in tensors.values())
        raise OSError(
            f"{path}: could not write {need:,} bytes: {error}; check free space and permissions"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _stored_bytes(shape: tuple[int, ...]) -> int:
    values = int(np.prod(shape))
    return values // BLOCK * (BLOCK + _SCALE_BYTES) if quantized(shape) else values * 4


def _stored(name: str, tensor: lazy.LazyTensor) -> np.ndarray:
    """Returns q8_0 bytes, or float32."""
    values = np.asarray(tensor[()], np.float32)
    if not quantized(values.shape):
        return np.ascontiguousarray(values)
    try:
        return quantize(values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _write(path: Path, tensors: Mapping[str, lazy.LazyTensor]) -> None:
    """Writes header and tensors, and then the checksums over the zeros that the header had."""
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    sums = dict.fromkeys(tensors, 0)
    placeholder = checksums.text(sums).encode()
    try:
        writer.add_string(checksums.KEY, placeholder.decode())
        for name, tensor in tensors.items():
            shape = tuple(tensor.shape)
            kind = _Q8_0 if quantized(shape) else gguf.GGMLQuantizationType.F32
            writer.add_tensor_info(
                name, shape, np.dtype(np.float32), _stored_bytes(shape), raw_dtype=kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            array = _stored(name, tensor)
            sums[name] = checksums.crc(array)
            writer.write_tensor_data(array)
            del array  # before the next is made
    finally:
        writer.close()
    with path.open("r+b") as file:
        head = file.read(len(placeholder) + _BEFORE_CHECKSUMS)
        file.seek(head.index(placeholder))
        file.write(checksums.text(sums).encode())


class _Reader(gguf.GGUFReader):
    """The package's reader of headers; it calls a truncated file a wrong reshape."""

    def __init__(self, path: Path) -> None:
        self.found: dict[str, GgufTensor] = {}
        self._path = path
        super().__init__(path)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        cut = []
        for field in fields:
            _, name, _, dims, number, offset = field.parts
            kind = gguf.GGMLQuantizationType(number[0])
            block, size = gguf.GGML_QUANT_SIZES[kind]
            begin = start_offs + int(offset[0])
            end = begin + int(np.prod(dims)) // block * size
            shape = tuple(int(n) for n in reversed(dims))
            named = bytes(name).decode()
            self.found[named] = GgufTensor(self._path, shape, kind, self.data[begin:end])
            if end > len(self.data):
                cut.append(named)
        if cut:
            raise ValueError(f"these tensors are cut off: {cut}")


def _open(path: Path) -> _Reader:
    try:
        return _Reader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: not a readable GGUF file ({size:,} bytes): {error}. Fetch or make it again."
        ) from error
