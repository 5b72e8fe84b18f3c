"""An image file of a client as pixels; run as a program, it serves `decoder`: files in, pixels out."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt8

from mvjax.config import limits as config_limits
from mvjax.data import images

_NICE = 10  # a conversation comes before an image


class How(NamedTuple):
    """What becomes of an image.

    Attributes:
      size: pixels of the model, to which it is squashed.
      resolution: no more detail than so many pixels is kept.
      center_crop: the longer side is cut first, in place of squashing it.
      max_bytes, max_pixels: a file or a header beyond them is not decoded.
    """

    size: int
    resolution: int
    center_crop: bool
    max_bytes: int
    max_pixels: int


def read(data: bytes, how: How) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes an image.

    Raises:
      ValueError: for what is no image, or too large.
    """
    allowed = config_limits.LimitsConfig(image_bytes=how.max_bytes, image_pixels=how.max_pixels)
    image = images.decode(data, limits=allowed)
    if how.center_crop:
        height, width, _ = image.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if how.resolution < how.size:
        image = images.resize_square(image, how.resolution)
    return images.resize_square(image, how.size)


def serve(files: BinaryIO, out: BinaryIO) -> None:
    """Answers requests until they end; the form of both is `decoder`'s."""
    while len(head := files.read(8)) == 8:
        named, size = struct.unpack(">II", head)
        how, data = How(**json.loads(files.read(named))), files.read(size)
        try:
            good, answer = True, read(data, how).tobytes()
        except ValueError as error:
            good, answer = False, str(error).encode()
        except MemoryError:
            good, answer = False, b"image: no memory is left to decode it; give a smaller one"
        out.write(struct.pack(">?I", good, len(answer)) + answer)
        out.flush()


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    serve(sys.stdin.buffer, sys.stdout.buffer)
