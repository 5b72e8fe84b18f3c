"""Bicubic resizing of 8-bit pixels with PyTorch's own integer arithmetic, so that the bits are the same.

kyuteye_pt resizes with torchvision, which hands uint8 pixels to `torch.nn.functional.interpolate` (bicubic,
antialias). That filters rows, rounds to 8 bits, then filters columns; each weight is a 16-bit integer.
Pillow, which kyuteye_mlx uses, has wider weights and may begin with the columns: of pure noise one or two
pixels in 100,000 differ by two grey levels, or 1 in 70 by up to four if the order is the other one.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from jaxtyping import Float, UInt8

_A = -0.5  # of the cubic kernel
_REACH = 2  # of the cubic kernel, in pixels of the coarser grid
_WEIGHT_BITS, _MAX_SHIFT = 15, 22  # weights are signed 16-bit; no more fraction than this


def bicubic(
    image: UInt8[np.ndarray, "height width channels"], height: int, width: int
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Returns the image at another size; what keeps its size along an axis is not filtered there."""
    if image.shape[1] != width:
        columns = np.ascontiguousarray(image.swapaxes(0, 1))
        image = _along_first(columns, width).swapaxes(0, 1)
    if image.shape[0] != height:
        image = _along_first(np.ascontiguousarray(image), height)
    return np.ascontiguousarray(image)


def _along_first(
    image: UInt8[np.ndarray, "old rest channels"], size: int
) -> UInt8[np.ndarray, "size rest channels"]:
    old = image.shape[0]
    weights, first = _weights(old, size)
    # As many bits of fraction as the largest weight leaves.
    shift = 0
    while shift < _MAX_SHIFT and int(0.5 + weights.max() * 2 ** (shift + 1)) < 2**_WEIGHT_BITS:
        shift += 1
    rounded = (weights * 2**shift + np.copysign(0.5, weights)).astype(np.int32)
    pixels = np.minimum(first[:, None] + np.arange(weights.shape[1]), old - 1)  # beyond: weight 0
    starts = np.arange(size + 1) * weights.shape[1]
    filters = scipy.sparse.csr_array((rounded.ravel(), pixels.ravel(), starts), shape=(size, old))
    total = filters @ image.reshape(old, -1).astype(np.int32)
    total = (total + (1 << shift >> 1)) >> shift
    return np.clip(total, 0, 255).astype(np.uint8).reshape(size, *image.shape[1:])


def _weights(old: int, size: int) -> tuple[Float[np.ndarray, "size taps"], np.ndarray]:
    """Returns (weights that add up to 1, the first pixel that they are for), one row a new pixel."""
    scale = old / size
    stretch = max(scale, 1.0)
    centre = scale * (np.arange(size) + 0.5)
    first = np.maximum((centre - _REACH * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + _REACH * stretch + 0.5).astype(np.int64), old)
    pixel = first[:, None] + np.arange((last - first).max())
    weights = _cubic((pixel - centre[:, None] + 0.5) / stretch)
    weights = np.where(pixel < last[:, None], weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True), first


def _cubic(x: Float[np.ndarray, "size taps"]) -> Float[np.ndarray, "size taps"]:
    x = np.abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
