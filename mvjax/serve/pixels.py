"""An image file of a client as the pixels that the model takes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from mvjax.config import limits as config_limits
from mvjax.data import images
from mvjax.serve import limits as limits_lib


def read(
    data: bytes, size: int, *, resolution: int, center_crop: bool, limits: limits_lib.Limits
) -> Float32[np.ndarray, "1 size size 3"]:
    """Decodes an image and squashes it to a square.

    Args:
      data: an image file.
      size: pixels of the model.
      resolution: keeps no more detail than so many pixels.
      center_crop: cuts the longer side first, in place of squashing it.
      limits: of bytes and pixels; a header beyond them is not decoded.

    Raises:
      ValueError: for what is no image, or too large.
    """
    allowed = config_limits.LimitsConfig(
        image_bytes=limits.message_bytes, image_pixels=limits.image_pixels
    )
    image = images.decode(data, limits=allowed)
    if center_crop:
        height, width, _ = image.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if resolution < size:
        image = images.resize_square(image, resolution)
    return images.normalize(images.resize_square(image, size))[None]
