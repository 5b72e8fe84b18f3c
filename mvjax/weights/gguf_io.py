"""Reads and writes GGUF files with q8_0 weights, through the `gguf` package.

As candle's own `tensor-tools quantize`: matrices whose rows are whole blocks of 32 become q8_0
(a float16 scale and 32 int8 codes), and everything else float32.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from jaxtyping import Float32, UInt8

from mvjax import files
from mvjax.weights import checksums, lazy

ARCHITECTURE = "moshi-vis"  # candle asks for none, the format for one
BLOCK = 32  # values that share a scale
_Q8_0 = gguf.GGMLQuantizationType.Q8_0
_SCALE_BYTES = 2
_BLOCK_BYTES = _SCALE_BYTES + BLOCK
_BEFORE_CHECKSUMS = 2**12  # bytes: more than a header has before them
_MAX_HEADER, _MAX_FILE = 2**26, 2**40  # bytes
_UNREADABLE = (ValueError, IndexError, KeyError, OverflowError)  # raised by the package for damage


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
    blocks = packed.reshape(-1, _BLOCK_BYTES)
    lost = blocks[:, :_SCALE_BYTES].copy().view(np.float16)[:, 0] == 0
    blocks[lost, _SCALE_BYTES:] = 0
    return packed


def q8_round_trip(tensor: lazy.LazyTensor) -> lazy.Computed:
    """Returns a tensor as a GGUF would give it back, computed when it is read: float32, rounded to q8_0."""

    def read(part: lazy.Index) -> np.ndarray:
        values = np.asarray(tensor[()], np.float32)
        rounded = quantized(values.shape)
        return (gguf.quants.dequantize(quantize(values), _Q8_0) if rounded else values)[part]

    return lazy.Computed(tuple(tensor.shape), np.dtype(np.float32), read)


def tensors(path: Path) -> dict[str, lazy.Computed]:
    """Returns {name: float32 tensor}, in any of GGUF's plain or quantized kinds.

    Raises:
      ValueError: if the file is truncated or corrupt, naming it and the tensors that are cut off.
    """
    found = {}
    for tensor in _open(path).tensors:
        shape = tuple(map(int, reversed(tensor.shape)))
        read = functools.partial(_part, tensor.data, tensor.tensor_type, shape)
        found[tensor.name] = lazy.Computed(shape, np.dtype(np.float32), read)
    return found


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
        path, (n for n, data in checked.items() if checksums.crc(data) != sums[n])
    )
    return len(checked)


def write(path: Path, tensors: Mapping[str, lazy.LazyTensor]) -> None:
    """Writes a file whole or not at all; equal tensors give equal bytes. One is read at a time.

    Raises:
      ValueError: naming the tensor that cannot be quantized.
      OSError: naming the file, when the disk is full or the folder cannot be written.
    """
    size = sum(_stored_bytes(tuple(tensor.shape)) for tensor in tensors.values())
    with files.replacing(path, size) as draft:
        _write(draft, tensors)


def _part(
    data: np.ndarray, kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], part: lazy.Index
) -> np.ndarray:
    """Returns a part of a mapped tensor; of a q8_0 matrix, only the blocks that it touches are read."""
    if kind != _Q8_0 or not quantized(shape):
        return gguf.quants.dequantize(np.array(data), kind).reshape(shape)[part]
    rows, columns = part
    first, last = columns.start // BLOCK, -(-columns.stop // BLOCK)
    touched = data[rows, first * _BLOCK_BYTES : last * _BLOCK_BYTES]
    values = gguf.quants.dequantize(np.ascontiguousarray(touched), _Q8_0)
    return values[:, columns.start - first * BLOCK : columns.stop - first * BLOCK]


def _stored_bytes(shape: tuple[int, ...]) -> int:
    values = int(np.prod(shape))
    return values // BLOCK * _BLOCK_BYTES if quantized(shape) else values * 4


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
