"""Reads and writes safetensors files, one or several with an index; bfloat16 through ml_dtypes.

Tensors are memory-mapped one at a time, so that a value takes memory only while it is used. Writing takes one
tensor at a time, too, which the `safetensors` package does not. The format has no checksums, so `write` adds
the CRC-32 of every tensor to the metadata, and `verify` and `read` compare them; other readers ignore them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from mvjax import files as files_lib
from mvjax import messages, tree
from mvjax.weights import checksums, lazy

INDEX_SUFFIX = ".safetensors.index.json"

_HEADER_LENGTH = struct.calcsize("<Q")
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format
_ALIGNMENT = 8
_CHUNK = 2**24  # bytes checked at a time
_PLAIN = {"F": (2, 4, 8), "I": (1, 2, 4, 8), "U": (1, 2, 4, 8)}  # {kind: bytes}
_DTYPES = {
    **{f"{k}{8 * size}": np.dtype(f"{k.lower()}{size}") for k in _PLAIN for size in _PLAIN[k]},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class SafetensorsTensor:
    """One tensor in a file; what it returns is a view of the file's pages."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int  # bytes from the start of the file

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        """Maps the tensor and returns the part."""
        part = lazy.slices(lazy.box(index, self.shape))
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)[part]
        mapped = np.memmap(self.file, self.dtype, "r", offset=self.begin, shape=self.shape)
        return np.asarray(mapped)[(*part, ...)]


def tensors(path: Path) -> dict[str, SafetensorsTensor]:
    """Returns {name: tensor} of a file, or of all files that an index (`*.index.json`) names.

    Raises:
      ValueError: if a file is truncated or corrupt, naming it and the tensors that are cut off, or an
        index and its files contradict each other, naming every tensor.
    """
    return _indexed(path) if path.name.endswith(INDEX_SUFFIX) else _contents(path)


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns {name: values}.

    Raises:
      ValueError: as `tensors` and `verify`.
    """
    values = {name: np.array(tensor[()]) for name, tensor in tensors(path).items()}
    sums: dict[str, int] = {}
    for file in files(path):
        sums |= _checksums(file)
    bad = [name for name in values if name in sums and checksums.crc(values[name]) != sums[name]]
    checksums.refuse_changed(path, bad)
    return values


def verify(path: Path) -> int:
    """Compares tensors with the checksums in their file; returns how many had one.

    Raises:
      ValueError: naming the file and every tensor whose bytes are not those that were written.
    """
    count = 0
    for file in files(path):
        if sums := _checksums(file):
            checksums.refuse_changed(file, _changed(file, sums))
        count += len(sums)
    return count


def hash_and_compare(file: Path) -> tuple[str, list[str]]:
    """Returns the SHA-256 of one file and the tensors that differ from its checksums, in one read.

    Raises:
      ValueError: as `tensors`.
    """
    digest = hashlib.sha256()
    changed = _changed(file, _checksums(file), update=digest.update)
    return digest.hexdigest(), changed


def files(path: Path) -> list[Path]:
    """Returns the files that hold the tensors: the path itself, or those that an index names."""
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    return [path.parent / name for name in sorted(set(_weight_map(path).values()))]


def write(path: Path, tensors: Mapping[str, lazy.LazyTensor]) -> None:
    """Writes a file whole or not at all: a partial write never replaces an existing file.

    Equal tensors give equal bytes. One tensor is read at a time, and dropped.

    Raises:
      OSError: naming the file, when the disk is full or the folder cannot be written.
    """
    # Widest dtypes first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        shape, dtype = tuple(tensors[name].shape), np.dtype(tensors[name].dtype)
        begin, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    sums = dict.fromkeys(order, 0)
    with files_lib.replacing(path, end) as draft, draft.open("wb") as file:
        file.write(_header(header, sums))
        for name in order:
            values = np.asarray(tensors[name][()])
            sums[name] = checksums.crc(values)
            file.write(checksums.raw(values))
            del values  # before the next is made
        file.seek(0)
        file.write(_header(header, sums))


def _header(entries: dict[str, Any], sums: dict[str, int]) -> bytes:
    """Returns length and header; its size does not depend on the sums."""
    metadata = {checksums.KEY: checksums.text(sums)}
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _contents(path: Path) -> dict[str, SafetensorsTensor]:
    metadata(path)  # the package checks header, offsets and file size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(_HEADER_LENGTH))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = _HEADER_LENGTH + length
    unknown = sorted(f"{n} ({e['dtype']})" for n, e in header.items() if e["dtype"] not in _DTYPES)
    if unknown:
        raise ValueError(
            f"{path}: expected dtypes of {sorted(_DTYPES)}, got {messages.names(unknown)}"
        )
    return {
        name: SafetensorsTensor(
            path, tuple(entry["shape"]), _DTYPES[entry["dtype"]], start + entry["data_offsets"][0]
        )
        for name, entry in sorted(header.items())
    }


def _indexed(index: Path) -> dict[str, SafetensorsTensor]:
    where = _weight_map(index)
    if absent := [str(file) for file in files(index) if not file.is_file()]:
        raise FileNotFoundError(f"{index}: no such files, though it names them: {absent}")
    contents = {file.name: _contents(file) for file in files(index)}
    problems = [
        f"{n}: expected in {file}, not there"
        for n, file in where.items()
        if n not in contents[file]
    ]
    problems += [
        f"{name}: found in {file}, not in the index or elsewhere in it"
        for file, held in contents.items()
        for name in held
        if where.get(name) != file
    ]
    tree.refuse(problems, f"{index}: the index and its files differ")
    return {name: contents[file][name] for name, file in where.items()}


def _changed(
    file: Path, sums: Mapping[str, int], *, update: Callable[[bytes], None] | None = None
) -> list[str]:
    """Reads a file once, start to end; returns tensors whose CRC-32 differs, and hands on all bytes."""
    tensors = sorted(_contents(file).items(), key=lambda item: item[1].begin)
    sizes = {name: int(np.prod(t.shape)) * t.dtype.itemsize for name, t in tensors}
    header = file.stat().st_size - sum(sizes.values())  # the format has no gaps
    changed = []
    with file.open("rb") as stream:
        for name, left in [("", header), *sizes.items()]:
            crc = 0
            while left > 0 and (chunk := stream.read(min(left, _CHUNK))):
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
                if update is not None:
                    update(chunk)
            if crc != sums.get(name, crc):
                changed.append(name)
    return changed


def _weight_map(index: Path) -> dict[str, str]:
    try:
        where = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{index}: expected JSON with "weight_map": {{tensor: file}} ({error!r})'
        ) from error
    if outside := sorted({str(file) for file in where.values() if Path(str(file)).name != file}):
        raise ValueError(
            f"{index}: expected names of files beside it, got {messages.names(outside)}"
        )
    return where


def metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of one file; raises ValueError if it is truncated or corrupt."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(_explain(path, error)) from error


def _checksums(path: Path) -> dict[str, int]:
    return checksums.parse(metadata(path).get(checksums.KEY, "{}"), place=str(path))


def _explain(path: Path, error: Exception) -> str:
    """Returns a message with the tensors that a truncated file lacks, as far as its header can be read."""
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
    if cut := sorted(name for name, end in ends.items() if start + end > size):
        expected = start + max(ends.values())
        return f"{fact}; expected {expected:,} bytes, so these tensors are cut off: {cut}"
    return f"{fact}. Fetch or make it again."
