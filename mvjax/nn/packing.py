"""Sequences of several lengths side by side in one array, for layers that work frame by frame."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Packing:
    """Where the parts of a batch lie in an array [shards, frames, ...].

    Each shard of rows has one packed row: its rows of the first part, one after the other, then those of the
    next. So packing moves nothing between devices. A part alone is not packed: its array stays [B, T, ...].
    """

    shapes: tuple[tuple[int, int], ...]  # (B, T) of each part
    shards: int = 1  # that the rows of every part are split into

    def pack(self, parts: Sequence[Array]) -> Array:
        """Returns the parts [B, T, ...] as one array."""
        if len(parts) == 1:
            return parts[0]
        rows = [x.reshape(self.shards, -1, *x.shape[2:]) for x in parts]
        return jnp.concatenate(rows, axis=1)

    def unpack(self, x: Array) -> list[Array]:
        """Returns the parts of an array that `pack` made."""
        if len(self.shapes) == 1:
            return [x]
        sizes = [math.prod(shape) // self.shards for shape in self.shapes]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [
            x[:, end - size : end].reshape(*shape, *x.shape[2:])
            for shape, size, end in zip(self.shapes, sizes, ends, strict=True)
        ]


def alone(x: Array) -> Packing:
    """Returns the packing of an array [B, T, ...] that is the only part."""
    return Packing(((x.shape[0], x.shape[1]),))
