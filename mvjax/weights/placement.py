"""Places leaves on devices shard by shard, so that the host holds one shard at a time, not the model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.core
import numpy as np
from jax.sharding import Sharding

from mvjax.weights import lazy

PART_BYTES = 2**26  # of a leaf on the host at a time


def place(
    leaves: Mapping[str, lazy.LazyTensor],
    shardings: Mapping[str, Sharding],
    *,
    dtype: np.dtype | type | None = None,
) -> dict[str, jax.Array]:
    """Returns {path: array}; each process reads the slices of its own devices, each slice once.

    The shardings are those of the same paths; without a dtype each leaf keeps its own.
    """
    return {path: _placed(leaf, shardings[path], dtype) for path, leaf in leaves.items()}


def host_parts(leaf: np.ndarray | jax.Array) -> Iterator[np.ndarray]:
    """Yields the values in C order, a bounded number of rows at a time, as numpy arrays.

    Of an array that is spread over several processes, the parts that this process holds.
    """
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        for shard in sorted(leaf.addressable_shards, key=lambda shard: shard.device.id):
            yield from host_parts(shard.data)
        return
    rows = max(1, PART_BYTES * leaf.shape[0] // max(leaf.nbytes, 1)) if leaf.ndim else 0
    if leaf.ndim == 0 or rows >= leaf.shape[0]:
        yield lazy.in_c_order(np.asarray(leaf))
        return
    for first in range(0, leaf.shape[0], rows):
        yield _rows(leaf, first, min(first + rows, leaf.shape[0]))


def on_host(leaf: lazy.LazyTensor | jax.Array) -> lazy.LazyTensor:
    """Returns a leaf as a lazy tensor of numpy arrays; no host copy of a device array is kept."""
    if not isinstance(leaf, jax.Array):
        return leaf
    return lazy.Computed(leaf.shape, np.dtype(leaf.dtype), functools.partial(_part, leaf))


def as_numpy(leaf: Any) -> Any:
    """Returns an array that one CPU device holds as NumPy sees it, in place, and anything else as it is.

    jax compiles a program for each slice and each transposition of each shape.
    """
    held = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    if not (held and leaf.is_fully_addressable and len(leaf.devices()) == 1):
        return leaf
    return np.asarray(leaf) if leaf.devices().pop().platform == "cpu" else leaf


def _part(array: jax.Array, part: lazy.Index) -> np.ndarray:
    if not part:
        return np.asarray(array)
    return _rows(array, part[0].start, part[0].stop)[(slice(None), *part[1:])]


def _rows(leaf: np.ndarray | jax.Array, first: int, last: int) -> np.ndarray:
    """Returns rows; of an array on devices shard by shard, since the whole would be kept on the host."""
    if not isinstance(leaf, jax.Array):
        return lazy.in_c_order(leaf[first:last])
    rows = np.empty((last - first, *leaf.shape[1:]), leaf.dtype)
    for shard in leaf.addressable_shards:
        (low, high), *others = lazy.box(shard.index, leaf.shape)
        a, b = max(first, low), min(last, high)
        if shard.replica_id == 0 and a < b:
            data = as_numpy(shard.data)
            if isinstance(data, jax.Array):
                part = jax.lax.dynamic_slice_in_dim(data, a - low, b - a)
            else:
                part = data[a - low : b - low]
            rows[lazy.slices(((a - first, b - first), *others))] = np.asarray(part)
    return rows


def _placed(leaf: lazy.LazyTensor, sharding: Sharding, dtype: np.dtype | type | None) -> jax.Array:
    shape = tuple(leaf.shape)
    holders: dict[lazy.Box, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        holders.setdefault(lazy.box(index or (), shape), []).append(device)
    shards: list[jax.Array] = []
    for box, devices in holders.items():
        values = leaf[lazy.slices(box)]
        values = values if dtype is None else values.astype(dtype, copy=False)
        # Strides as they are: the runtime transposes while it copies, several times faster than numpy.
        shards += jax.block_until_ready([jax.device_put(values, device) for device in devices])
        del values  # before the next is read
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)
