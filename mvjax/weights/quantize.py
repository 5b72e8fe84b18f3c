"""MLX's affine quantization in numpy, bit for bit: groups of inputs become codes, a scale and a bias.

A weight [out, in] is cut into groups of consecutive inputs; element = scale * code + bias. Codes
are packed into uint32, the first in the lowest bits. Source: MLX's CPU backend, `quantize`; the
scale is found in float32, and the codes are taken before it is rounded to the weight's dtype.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple

import numpy as np

from mvjax.weights import lazy

_WORD = 32  # bits of a packed word
_BITS = (2, 4, 8)  # with which whole codes fill a word
_SMALLEST_SCALE = np.float32(1e-7)


@dataclasses.dataclass(frozen=True)
class AffineScheme:
    """How many bits a code has, and how many inputs share a scale."""

    bits: int
    group: int

    @property
    def per_word(self) -> int:
        """Codes in a packed word."""
        return _WORD // self.bits

    @property
    def shifts(self) -> np.ndarray:
        """The lowest bit of each code in a word."""
        return np.arange(0, _WORD, self.bits, dtype=np.uint32)


Mode = Literal["q8", "q4"]
SCHEMES: dict[str, AffineScheme] = {  # kyuteye_mlx's server asks for these; reference section 4.5
    "q8": AffineScheme(bits=8, group=64),
    "q4": AffineScheme(bits=4, group=32),
}


class AffineWeight(NamedTuple):
    """A quantized weight as MLX stores it."""

    weight: lazy.LazyTensor  # uint32 [out, words]
    scales: lazy.LazyTensor  # any float kind [out, groups]
    biases: lazy.LazyTensor  # as the scales


def quantize(weight: np.ndarray, scheme: AffineScheme) -> AffineWeight:
    """Returns what `mlx.core.quantize` returns for a weight [out, in]; scales in its dtype.

    Raises:
      ValueError: if the inputs do not fill whole groups.
    """
    rows, inputs = weight.shape
    if inputs % scheme.group:
        raise ValueError(
            f"quantize: expected inputs in whole groups of {scheme.group}, got {inputs}"
        )
    groups = weight.astype(np.float32).reshape(rows, inputs // scheme.group, scheme.group)
    largest = np.float32(2**scheme.bits - 1)
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    downwards = np.abs(low) > np.abs(high)
    step = np.maximum((high - low) / largest, _SMALLEST_SCALE)
    step = np.where(downwards, step, -step)
    edge = np.where(downwards, low, high)  # code 0; `largest` is the other end
    steps = np.rint(edge / step)
    scale = np.divide(edge, steps, out=step, where=steps != 0)  # so that zero has a code
    bias = np.where(steps != 0, edge, np.float32(0))
    codes = np.clip(np.rint((groups - bias) / scale), 0, largest).astype(np.uint32)
    words = codes.reshape(rows, -1, scheme.per_word) << scheme.shifts
    scale, bias = (part[..., 0].astype(weight.dtype) for part in (scale, bias))
    return AffineWeight(np.bitwise_or.reduce(words, axis=-1), scale, bias)


def dequantize(
    packed: AffineWeight, scheme: AffineScheme, *, dtype: np.dtype | type | None = None
) -> np.ndarray:
    """Returns the weight [out, in] of arrays: exactly in float32, or as `mlx.core.dequantize` rounds it.

    Without a dtype it is that of the scales, in which MLX computes: product and sum round each.
    """
    kept = np.dtype(packed.scales.dtype if dtype is None else dtype)
    largest = np.uint32(2**scheme.bits - 1)
    codes = (np.asarray(packed.weight)[..., None] >> scheme.shifts & largest).astype(kept)
    scales, biases = (np.asarray(part).astype(kept)[..., None] for part in packed[1:])
    groups = codes.reshape(*packed.scales.shape, scheme.group) * scales + biases
    return groups.reshape(len(codes), -1)


def dequantized(packed: AffineWeight, scheme: AffineScheme, dtype: np.dtype) -> lazy.Computed:
    """Returns a quantized weight in a file as a tensor of a dtype, dequantized as far as it is read."""
    rows, words = packed.weight.shape
    read = functools.partial(_part, packed, scheme, dtype)
    return lazy.Computed((rows, words * scheme.per_word), dtype, read)


def scheme_of(packed: AffineWeight, *, inputs: int) -> AffineScheme | None:
    """Returns how a weight with this many inputs was quantized; None if the shapes fit nothing."""
    rows, words = packed.weight.shape
    groups = packed.scales.shape[-1]
    if packed.scales.shape != (rows, groups) or packed.biases.shape != packed.scales.shape:
        return None
    if not groups or inputs % groups or words * _WORD % inputs:
        return None
    scheme = AffineScheme(bits=words * _WORD // inputs, group=inputs // groups)
    return scheme if scheme.bits in _BITS and scheme.group % scheme.per_word == 0 else None


def _part(
    packed: AffineWeight, scheme: AffineScheme, dtype: np.dtype, part: lazy.Index
) -> np.ndarray:
    """Reads the groups that a part touches."""
    rows, columns = part
    first, last = columns.start // scheme.group, -(-columns.stop // scheme.group)
    words = scheme.group // scheme.per_word
    touched = [packed.weight[rows, first * words : last * words]]
    touched += [tensor[rows, first:last] for tensor in packed[1:]]
    whole = dequantize(AffineWeight(*touched), scheme, dtype=dtype)
    return whole[:, columns.start - first * scheme.group : columns.stop - first * scheme.group]
