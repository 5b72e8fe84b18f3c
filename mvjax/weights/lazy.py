"""Lazy tensors: what is read slice by slice. Every file format gives and takes these.

A numpy array is a lazy tensor too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

Index = tuple[slice, ...]
Box = tuple[tuple[int, int], ...]  # [first, past the last) along each axis

_TILE = 256  # of both axes: what it reads and writes stays in a core's cache


@runtime_checkable
class LazyTensor(Protocol):
    """A tensor with known shape and dtype; `tensor[slices]` reads a part, `tensor[()]` the whole."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, known without reading."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values where no other is asked for."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Returns the part that slices (one per axis, or none) select, as a numpy array."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Computed:
    """A tensor whose parts a function reads or computes, each time that they are asked for.

    Attributes:
      read: slices, one per axis with both ends -> the values of that part.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    def __getitem__(self, index: Index) -> np.ndarray:
        """Returns the part that slices select."""
        return self.read(slices(box(index, self.shape)))


def concatenated(parts: Sequence[LazyTensor]) -> Computed:
    """Returns tensors joined along their first axis; only parts with the requested rows are read."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    dtype = common_dtype([part.dtype for part in parts])
    return Computed(shape, dtype, functools.partial(_joined_rows, parts))


def row_block(whole: LazyTensor, k: int, count: int) -> Computed:
    """Returns the k-th of `count` equal parts of a tensor's rows."""
    rows = whole.shape[0] // count

    def read(part: Index) -> np.ndarray:
        return whole[(slice(k * rows + part[0].start, k * rows + part[0].stop), *part[1:])]

    return Computed((rows, *whole.shape[1:]), np.dtype(whole.dtype), read)


def cast(tensor: LazyTensor, dtype: Any) -> LazyTensor:
    """Returns the tensor in a dtype, converted as it is read; None, or its own, leaves it as it is."""
    if dtype is None or np.dtype(dtype) == np.dtype(tensor.dtype):
        return tensor
    kept = np.dtype(dtype)
    return Computed(
        tuple(tensor.shape), kept, lambda part: np.asarray(tensor[part]).astype(kept, copy=False)
    )


def box(index: Index, shape: Sequence[int]) -> Box:
    """Returns the bounds that slices select; axes beyond the index are whole."""
    bounds = [part.indices(size) for part, size in zip(index, shape)]
    assert all(step == 1 for _, _, step in bounds), f"slices with steps are not read: {index}"
    named = [(low, max(low, high)) for low, high, _ in bounds]
    return (*named, *((0, size) for size in shape[len(index) :]))


def slices(bounds: Sequence[tuple[int, int]]) -> Index:
    """Inverse of `box`."""
    return tuple(slice(low, high) for low, high in bounds)


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """Returns the one dtype of several, or float32 where they differ."""
    if len(set(dtypes)) == 1:
        return np.dtype(dtypes[0])
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def in_c_order(x: np.ndarray) -> np.ndarray:
    """Returns an array in C order; of transposed axes, tile by tile, four times as fast as numpy alone."""
    inner = min(range(x.ndim), key=lambda axis: (x.shape[axis] == 1, x.strides[axis]), default=0)
    if inner >= x.ndim - 1:
        return np.asarray(x, order="C")
    ordered = np.empty(x.shape, x.dtype)
    for low in range(0, x.shape[inner], _TILE):
        for first in range(0, x.shape[-1], _TILE):
            tile = [slice(None)] * x.ndim
            tile[inner], tile[-1] = slice(low, low + _TILE), slice(first, first + _TILE)
            ordered[tuple(tile)] = x[tuple(tile)]
    return ordered


def is_float(dtype: np.dtype) -> bool:
    """Whether values of this dtype are floating point numbers, those of ml_dtypes included."""
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True


def _joined_rows(parts: Sequence[LazyTensor], index: Index) -> np.ndarray:
    pieces, start = [], 0
    for part in parts:
        low, high = max(index[0].start - start, 0), min(index[0].stop - start, part.shape[0])
        if low < high:
            pieces.append(part[(slice(low, high), *index[1:])])
        start += part.shape[0]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
