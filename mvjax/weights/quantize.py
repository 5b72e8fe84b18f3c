"""MLX's affine quantization in numpy, bit for bit: groups of inputs become codes, a scale and a bias.

A weight [out, in] is cut into groups of consecutive inputs; element = scale * code + bias. Codes
are packed into uint32, the first in the lowest bits. Source: MLX's CPU backend, `quantize`; the
scale is found in float32, and the codes are taken before it is rounded to the weight's dtype.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt32

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
    def largest(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    @property
    def per_word(self) -> int:
        """Codes in a packed word."""
        return _WORD // self.bits


Mode = Literal["q8", "q4"]
SCHEMES: dict[str, AffineScheme] = {  # kyuteye_mlx's server asks for these; reference section 4.5
    "q8": AffineScheme(bits=8, group=64),
    "q4": AffineScheme(bits=4, group=32),
}


class AffineWeight(NamedTuple):
    """A quantized weight as MLX stores it; float values of any kind."""

    weight: UInt32[np.ndarray, "out words"]
    scales: Float[np.ndarray, "out groups"]
    biases: Float[np.ndarray, "out groups"]


@dataclasses.dataclass(frozen=True, eq=False)
class LazyAffineWeight:
    """A quantized weight in a file, dequantized as far as it is read.

    Attributes:
      weight: codes.
      scales: one a group.
      biases: one a group.
      scheme: bits and group size.
      dtype: of the values; see `dequantize`.
    """

    weight: lazy.LazyTensor
    scales: lazy.LazyTensor
    biases: lazy.LazyTensor
    scheme: AffineScheme
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.weight.shape[0], self.weight.shape[1] * self.scheme.per_word

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        """Returns a part; reads the groups that it touches."""
        (top, bottom), (left, right) = lazy.box(index, self.shape)
        group, words = self.scheme.group, self.scheme.group // self.scheme.per_word
        first, last = left // group, -(-right // group)
        rows, groups = slice(top, bottom), slice(first, last)
        packed = AffineWeight(
            np.asarray(self.weight[rows, slice(first * words, last * words)]),
            np.asarray(self.scales[rows, groups]),
            np.asarray(self.biases[rows, groups]),
        )
        whole = dequantize(packed, self.scheme, dtype=self.dtype)
        return whole[:, left - first * group : right - first * group]


def quantize(weight: np.ndarray, scheme: AffineScheme) -> AffineWeight:
    """Returns what `mlx.core.quantize` returns for a weight [out, in]; scales in its dtype.

    Raises:
      ValueError: if the inputs do not fill whole groups.
    """
    groups = _groups(weight, scheme)
    scale, bias = _fit(groups, scheme.largest)
    return _affine(_codes(groups, scale, bias, scheme), scale, bias, weight.dtype, scheme)


def dequantize(
    packed: AffineWeight, scheme: AffineScheme, *, dtype: np.dtype | type | None = None
) -> np.ndarray:
    """Returns the weight [out, in]: exactly in float32, or as `mlx.core.dequantize` rounds it.

    Args:
      packed: as read from a file.
      scheme: that of `quantize`.
      dtype: None keeps that of the scales, in which MLX computes: product and sum round each.
    """
    kept = packed.scales.dtype if dtype is None else np.dtype(dtype)
    codes = unpack(packed.weight, scheme).astype(kept)
    groups = codes.reshape(*packed.scales.shape, scheme.group)
    scales, biases = (part.astype(kept)[..., None] for part in (packed.scales, packed.biases))
    return (groups * scales + biases).reshape(codes.shape)


def unpack(
    words: UInt32[np.ndarray, "out words"], scheme: AffineScheme
) -> UInt32[np.ndarray, "out in"]:
    """Returns one code an element."""
    shifts = np.arange(scheme.per_word, dtype=np.uint32) * np.uint32(scheme.bits)
    codes = (words[..., None] >> shifts) & np.uint32(scheme.largest)
    return codes.reshape(len(words), -1)


def scheme_of(
    weight: lazy.LazyTensor, scales: lazy.LazyTensor, biases: lazy.LazyTensor, *, inputs: int
) -> AffineScheme | None:
    """Returns how a weight with this many inputs was quantized; None if the shapes fit nothing."""
    rows, words = weight.shape
    groups = scales.shape[-1]
    if scales.shape != (rows, groups) or biases.shape != scales.shape or not groups:
        return None
    if inputs % groups or words * _WORD % inputs:
        return None
    scheme = AffineScheme(bits=words * _WORD // inputs, group=inputs // groups)
    return scheme if scheme.bits in _BITS and scheme.group % scheme.per_word == 0 else None


def _groups(weight: np.ndarray, scheme: AffineScheme) -> Float[np.ndarray, "out groups size"]:
    rows, inputs = weight.shape
    if inputs % scheme.group:
        raise ValueError(
            f"quantize: expected inputs in whole groups of {scheme.group}, got {inputs}"
        )
    return weight.astype(np.float32).reshape(rows, inputs // scheme.group, scheme.group)


def _fit(
    groups: Float[np.ndarray, "out groups size"], last: int
) -> tuple[Float[np.ndarray, "out groups"], Float[np.ndarray, "out groups"]]:
    """Returns (scale, bias): code 0 is the element farthest from zero, `last` the other end."""
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    downwards = np.abs(low) > np.abs(high)
    step = np.maximum((high - low) / np.float32(last), _SMALLEST_SCALE)
    step = np.where(downwards, step, -step)
    edge = np.where(downwards, low, high)
    steps = np.rint(edge / step)
    scale = np.divide(edge, steps, out=step, where=steps != 0)  # so that zero has a code
    return scale, np.where(steps != 0, edge, np.float32(0))


def _codes(
    groups: Float[np.ndarray, "out groups size"],
    scale: Float[np.ndarray, "out groups"],
    bias: Float[np.ndarray, "out groups"],
    scheme: AffineScheme,
) -> Float[np.ndarray, "out groups size"]:
    codes = np.rint((groups - bias[..., None]) / scale[..., None])
    return np.clip(codes, 0, np.float32(scheme.largest))


def _affine(
    codes: Float[np.ndarray, "out groups size"],
    scale: Float[np.ndarray, "out groups"],
    bias: Float[np.ndarray, "out groups"],
    dtype: np.dtype,
    scheme: AffineScheme,
) -> AffineWeight:
    words = codes.astype(np.uint32).reshape(len(codes), -1, scheme.per_word)
    shifts = np.arange(scheme.per_word, dtype=np.uint32) * np.uint32(scheme.bits)
    packed = np.bitwise_or.reduce(words << shifts, axis=-1)
    return AffineWeight(packed, scale.astype(dtype), bias.astype(dtype))
