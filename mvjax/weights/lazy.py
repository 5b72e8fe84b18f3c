"""Lazy tensors: what is read slice by slice. Every file format gives and takes these.

A numpy array is a lazy tensor too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

Index = tuple[slice, ...]
Box = tuple[tuple[int, int], ...]  # [first, past the last) along each axis


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
class ConcatenatedRows:
    """Tensors concatenated along their first axis."""

    parts: Sequence[LazyTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows of all parts, and the other axes of the first."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """The dtype that holds the values of all parts."""
        return common_dtype([part.dtype for part in self.parts])

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads only the parts that hold the requested rows."""
        (first, last), *others = box(index, self.shape)
        rest = slices(others)
        pieces, start = [], 0
        for part in self.parts:
            low, high = max(first - start, 0), min(last - start, part.shape[0])
            if low < high:
                pieces.append(part[(slice(low, high), *rest)])
            start += part.shape[0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@dataclasses.dataclass(frozen=True, eq=False)
class RowBlock:
    """The k-th of `count` equal parts of a tensor's rows."""

    whole: LazyTensor
    k: int
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        """An equal share of the rows."""
        return (self.whole.shape[0] // self.count, *self.whole.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """That of the whole."""
        return np.dtype(self.whole.dtype)

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads the rows from the whole tensor."""
        (low, high), *others = box(index, self.shape)
        first = self.k * self.shape[0]
        return self.whole[slices(((first + low, first + high), *others))]


@dataclasses.dataclass(frozen=True, eq=False)
class CastTensor:
    """A tensor in another dtype, converted as it is read."""

    tensor: LazyTensor
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor."""
        return tuple(self.tensor.shape)

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads and converts the part."""
        return np.asarray(self.tensor[index]).astype(self.dtype, copy=False)


def cast(tensor: LazyTensor, dtype: Any) -> LazyTensor:
    """Returns the tensor in a dtype; None, or its own, leaves it as it is."""
    if dtype is None or np.dtype(dtype) == np.dtype(tensor.dtype):
        return tensor
    return CastTensor(tensor, np.dtype(dtype))


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


def is_float(dtype: np.dtype) -> bool:
    """Whether values of this dtype are floating point numbers, those of ml_dtypes included."""
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True
