"""Resamples a grid of position embeddings, for images of another size than the file was trained on."""

from __future__ import annotations

import functools
import logging
import math

import numpy as np
import scipy.ndimage
from jaxtyping import Float

from mvjax.config import schema
from mvjax.weights import lazy

_LOG = logging.getLogger(__name__)


def fit(table: lazy.LazyTensor, config: schema.SiglipConfig, *, place: str) -> lazy.LazyTensor:
    """Returns the table for the config's image size, resampled if it is for another, which is logged.

    A table of another width, or not of a square, is returned as it is, to be refused by its shape.
    """
    count = config.tokens
    *_, rows, width = (0, 0, *table.shape)
    side = math.isqrt(rows)
    if rows in (0, count) or side * side != rows or width != config.width:
        return table
    _LOG.warning(
        "%s: positions were resampled from images of %d pixels (%d x %d) to the config's %d (%d x %d)",
        place, side * config.patch, side, side, config.image_size, *[math.isqrt(count)] * 2,
    )  # fmt: skip
    shape = (*table.shape[:-2], count, width)
    return lazy.Computed(shape, np.dtype(table.dtype), functools.partial(_part, table, shape))


def _part(table: lazy.LazyTensor, shape: tuple[int, ...], part: lazy.Index) -> np.ndarray:
    """Reads the whole table, which is small, and resamples it."""
    *_, count, width = shape
    whole = np.asarray(table[()], np.float32).reshape(-1, width)
    return resample(whole, count).reshape(shape)[part]


def resample(table: Float[np.ndarray, "positions E"], count: int) -> Float[np.ndarray, "count E"]:
    """Resizes a square grid bilinearly, corner on corner.

    Source: big_vision/models/vit.py, `resample_posemb`. Differs: the edge is extended. Without that
    scipy takes a last point that rounding puts 4e-15 beyond the corner for outside, and the last row
    and column of a 32 x 32 grid made 16 x 16 become zeros.
    """
    old, new = math.isqrt(table.shape[0]), math.isqrt(count)
    grid = table.reshape(old, old, -1)
    zoomed = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1, mode="nearest")
    return np.asarray(zoomed).reshape(count, -1)
