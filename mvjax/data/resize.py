"""Bicubic resizing of 8-bit pixels with the arithmetic of torch or of Pillow: one kernel, two roundings.

*torch*: kyuteye_pt resizes with torchvision, which hands uint8 pixels to `torch.nn.functional.interpolate`
(bicubic, antialias). That filters rows, rounds to 8 bits, then filters columns; each weight is a 16-bit
integer. The bits here are the same.

*pillow*: what kyuteye_mlx calls, and so is this. Its weights are wider and it may begin with the columns: of
pure noise one or two pixels in 100,000 differ from torch's by two gray levels, or 1 in 70 by up to four if
the order is the other one.

kyuteye_rs resizes with the Rust crate `image`, which neither rounds nor cuts between the two axes: up to 24
gray levels from torch on noise. That is not imitated.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from jaxtyping import Float, UInt8
from PIL import Image

_A = -0.5  # of the cubic kernel
_REACH = 2  # of the cubic kernel, in pixels of the coarser grid
_WEIGHT_BITS, _MAX_SHIFT = 15, 22  # weights are signed 16-bit; no more fraction than this


def torch(
    image: UInt8[np.ndarray, "height width channels"], height: int, width: int
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Returns the image at another size; what keeps its size along an axis is not filtered there."""
    if image.shape[1] != width:
        columns = np.ascontiguousarray(image.swapaxes(0, 1))
        image = _along_first(columns, width).swapaxes(0, 1)
    if image.shape[0] != height:
        image = _along_first(np.ascontiguousarray(image), height)
    return np.ascontiguousarray(image)


def pillow(
    image: UInt8[np.ndarray, "height width 3"], height: int, width: int
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Returns the image at another size, by Pillow itself."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


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
    total = _filters(rounded, first, old) @ image.reshape(old, -1).astype(np.int32)
    total = (total + (1 << shift >> 1)) >> shift
    return np.clip(total, 0, 255).astype(np.uint8).reshape(size, *image.shape[1:])


def _filters(weights: np.ndarray, first: np.ndarray, old: int) -> scipy.sparse.csr_array:
    """Returns a matrix [size, old] of the weights [size, taps]."""
    size, taps = weights.shape
    pixels = np.minimum(first[:, None] + np.arange(taps), old - 1)  # beyond: weight 0
    starts = np.arange(size + 1) * taps
    return scipy.sparse.csr_array((weights.ravel(), pixels.ravel(), starts), shape=(size, old))


def _weights(old: int, size: int) -> tuple[Float[np.ndarray, "size taps"], np.ndarray]:
    """Returns (weights that add up to 1, the first pixel that they are for), one row a new pixel."""
    scale = old / size
    stretch = max(scale, 1.0)
    center = scale * (np.arange(size) + 0.5)
    first = np.maximum((center - _REACH * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((center + _REACH * stretch + 0.5).astype(np.int64), old)
    pixel = first[:, None] + np.arange((last - first).max())
    weights = _cubic((pixel - center[:, None] + 0.5) / stretch)
    weights = np.where(pixel < last[:, None], weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True), first


def _cubic(x: Float[np.ndarray, "size taps"]) -> Float[np.ndarray, "size taps"]:
    x = np.abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
