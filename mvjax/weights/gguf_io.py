"""Reads and writes GGUF files with q8_0 weights, through the `gguf` package.

As candle's own `tensor-tools quantize`: matrices whose rows are whole blocks of 32 become q8_0
(a float16 scale and 32 int8 codes), and everything else float32.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from jaxtyping import Float32, UInt8

from mvjax.weights import checksums, lazy

ARCHITECTURE = "moshi-vis"  # candle asks for none, the format for one
BLOCK = 32  # values that share a scale
_Q8_0 = gguf.GGMLQuantizationType.Q8_0
_SCALE_BYTES = 2
_BEFORE_CHECKSUMS = 2**12  # bytes: more than a header has before them
_MAX_HEADER, _MAX_FILE = 2**26, 2**40  # bytes
_UNREADABLE = (
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
)  # what the package raises for damage


def quantized(shape: tuple[int, ...]) -> bool:
    """Returns whether a tensor of this shape is stored as q8_0."""
    return len(shape) == 2 and shape[1] % BLOCK == 0


def quantize(weight: Float32[np.ndarray, "out in"]) -> UInt8[np.ndarray, "out bytes"]:
    """Returns the q8_0 blocks of a matrix; quantizing a dequantized matrix gives the same blocks.

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
    """Returns a tensor after quantizing and dequantizing: a matrix rounded to q8_0, others float32."""
    values = np.asarray(tensor, np.float32)
    return dequantize(quantize(values)) if quantized(values.shape) else values


@dataclasses.dataclass(frozen=True, eq=False)
class Q8RoundTrip:
    """A tensor as a GGUF would give it back, computed when it is read."""

    tensor: lazy.LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        """Float32, whatever the tensor has."""
        return np.dtype(np.float32)

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        """Quantizes and dequantizes the whole tensor, and returns a part."""
        whole = q8_round_trip(np.asarray(self.tensor[()]))
        return whole[lazy.slices(lazy.box(index, self.shape))]


@dataclasses.dataclass(frozen=True, eq=False)
class GgufTensor:
    """One tensor in a file, dequantized to float32 as far as it is read."""

    file: Path
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    data: np.ndarray  # mapped; bytes if the kind is quantized

    @property
    def dtype(self) -> np.dtype:
        """Float32, whatever the file has."""
        return np.dtype(np.float32)

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        """Returns a part; of a q8_0 matrix only the rows and blocks that it touches are read."""
        bounds = lazy.box(index, self.shape)
        if self.kind != _Q8_0 or not quantized(self.shape):
            whole = gguf.quants.dequantize(np.array(self.data), self.kind).reshape(self.shape)
            return whole[lazy.slices(bounds)]
        (top, bottom), (left, right) = bounds
        first, last = left // BLOCK, -(-right // BLOCK)
        size = _SCALE_BYTES + BLOCK
        part = np.ascontiguousarray(self.data[top:bottom, first * size : last * size])
        return dequantize(part)[:, left - first * BLOCK : right - first * BLOCK]


def tensors(path: Path) -> dict[str, GgufTensor]:
    """Returns {name: tensor}, in any of GGUF's plain or quantized kinds.

    Raises:
      ValueError: if the file is truncated or corrupt, naming it and the tensors that are cut off.
    """
    return {
        tensor.name: GgufTensor(
            path, tuple(map(int, reversed(tensor.shape))), tensor.tensor_type, tensor.data
        )
        for tensor in _open(path).tensors
    }


def verify(path: Path) -> int:
    """Compares tensors with the checksums in their file; returns how many had one.

    Raises:
      ValueError: naming the file and every tensor whose bytes are not those that were written.
    """
    reader = _open(path)
    field = reader.get_field(checksums.KEY)
    sums = {} if field is None else checksums.parse(field.contents(), place=str(path))
    checked = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name in sums}
    checksums.refuse_changed(
        path, [name for name, data in checked.items() if checksums.crc(data) != sums[name]]
    )
    return len(checked)


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


def _packed(name: str, tensor: lazy.LazyTensor) -> np.ndarray:
    """Returns q8_0 bytes, or float32."""
    values = np.asarray(tensor[()], np.float32)
    if not quantized(values.shape):
        return np.ascontiguousarray(values)
    try:
        return quantize(values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _write(path: Path, tensors: Mapping[str, lazy.LazyTensor]) -> None:
    """Writes header and tensors, and then the checksums in the place of zeros in the header."""
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
            array = _packed(name, tensor)
            sums[name] = checksums.crc(array)
            writer.write_tensor_data(array)
            del array  # before the next is made
    finally:
        writer.close()
    with path.open("r+b") as file:
        head = file.read(len(placeholder) + _BEFORE_CHECKSUMS)
        file.seek(head.index(placeholder))
        file.write(checksums.text(sums).encode())


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except _UNREADABLE as error:
        size = path.stat().st_size
        cut = _cut_off(path, size)
        fact = f"these tensors are cut off: {cut}" if cut else str(error)
        raise ValueError(
            f"{path}: not a readable GGUF file ({size:,} bytes): {fact}. Fetch or make it again."
        ) from error


def _cut_off(path: Path, size: int) -> list[str]:
    """Returns the tensors that end past the end of a file, if its header can be read.

    The reader takes a truncated file for one with wrong shapes, so the header is read once more, in front
    of a hole where the tensors would be.
    """
    try:
        with path.open("rb") as file, tempfile.NamedTemporaryFile() as header:
            header.write(file.read(_MAX_HEADER))
            header.truncate(_MAX_FILE)
            reader = gguf.GGUFReader(header.name)
    except (*_UNREADABLE, OSError):  # OSError: no room for such a file, or to map it
        return []
    return [t.name for t in reader.tensors if t.data_offset + t.n_bytes > size]
