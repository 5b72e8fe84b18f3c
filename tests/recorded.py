"""Tensors that count what is read from them, and the tables of rules that they are tried with."""

from typing import Any

import as_written
import numpy as np

from mvjax.weights import rules


class Recorded:
    """A tensor that counts the values read from it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.read = 0

    def __getitem__(self, index):
        part = self.values[index]
        self.read += part.size
        return part


def make(table, sizes, dtype: Any = np.float32):
    """Returns ({our path: random leaf}, {upstream name: its tensor, recorded})."""
    flat = leaves(table, sizes, dtype)
    tensors = as_written.tensors(flat, table, sizes)
    return flat, {name: Recorded(values) for name, values in tensors.items()}


def leaves(table, sizes, dtype: Any = np.float32):
    """Returns {our path: random leaf}."""
    rng = np.random.default_rng(0)
    shapes = rules.leaf_shapes(table, sizes)
    return {p: rng.standard_normal(s).astype(dtype) for p, s in shapes.items()}
