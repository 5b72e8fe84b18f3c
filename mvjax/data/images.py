"""Images between bytes and the encoder: decode, resize to a square, normalize, encode as PNG.

Photos are turned upright by their EXIF tag and every pixel mode becomes RGB first. The runtimes do neither:
kyuteye_pt drops transparency, and kyuteye_mlx takes other modes as they are (reference section 3.1). Other
metadata counts for nothing, damaged or not.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from mvjax.config import limits as limits_lib

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # no format that starts other programs

_LIMITS = limits_lib.LimitsConfig()
_TURNS = {  # EXIF's orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    data: bytes, *, limits: limits_lib.LimitsConfig = _LIMITS
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the upright RGB pixels of an encoded image; ValueError if too large, or not whole.

    Transparent parts show white; of an animation the first frame counts.
    """
    image = _open(data, limits)
    with _named_errors(len(data)):
        image.load()  # a PNG may have its EXIF behind the pixels
        return np.asarray(_to_rgb(_upright(image)))


def problems(data: bytes, limits: limits_lib.LimitsConfig = _LIMITS) -> list[str]:
    """Checks format and size of an encoded image by its header; returns what is wrong, as a list."""
    try:
        _open(data, limits)
    except ValueError as error:
        return [str(error)]
    return []


def resize_square(
    image: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Squashes an image to size x size: Pillow's bicubic (a = -0.5), antialiased, rounded to 8 bits.

    kyuteye_mlx resizes by Pillow too. kyuteye_pt has the same kernel from torch, with 16-bit weights: one
    value in 100 differs by a gray level, one in 100,000 by two. That changes SigLIP's features by less
    than their rounding to bfloat16.
    """
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def normalize(
    image: UInt8[np.ndarray, "*batch height width 3"],
) -> Float32[np.ndarray, "*batch height width 3"]:
    """Maps 0..255 to [-1, 1], which is what SigLIP expects."""
    return (image.astype(np.float32) / 255 - 0.5) / 0.5


def encode_png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Returns the image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def _open(data: bytes, limits: limits_lib.LimitsConfig) -> Image.Image:
    """Reads the header and checks the limits; the pixels are still encoded."""
    if len(data) > limits.image_bytes:
        raise ValueError(
            f"image: at most {limits.image_bytes} bytes (limits.image_bytes), got {len(data)};"
            " shrink it or raise the limit"
        )
    with _named_errors(len(data)):
        image = Image.open(io.BytesIO(_without_metadata(data)), formats=FORMATS)
    if image.mode == "F":
        raise ValueError(
            "image: expected whole numbers, got floating point, whose white no file tells; save it in 8 bits"
        )
    width, height = image.size
    if width * height > limits.image_pixels:
        raise ValueError(
            f"image: at most {limits.image_pixels} pixels (limits.image_pixels), got"
            f" {width}x{height} = {width * height}; shrink it or raise the limit"
        )
    return image


def _without_metadata(data: bytes) -> bytes:
    """A PNG or JPEG without the parts that no pixel depends on: Pillow refuses files for them, too."""
    png, jpeg = data.startswith(b"\x89PNG"), data.startswith(b"\xff\xd8")
    at = 8 if png else 2
    kept = [data[:at]]
    while (png or jpeg) and at + 8 <= len(data):
        if png:
            size, name = struct.unpack_from(">I4s", data, at)
            end, keep = at + 12 + size, name[0] < ord("a") or name in (b"tRNS", b"eXIf")
        else:
            marker, size = struct.unpack_from(">HH", data, at)
            # up to the first scan; APP2 to APP13 and comments go, JFIF, EXIF and Adobe's colors stay
            if not 0xFFC0 <= marker <= 0xFFFE or marker == 0xFFDA:
                break
            end, keep = at + 2 + size, not (0xFFE2 <= marker <= 0xFFED or marker == 0xFFFE)
        if keep:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _upright(image: Image.Image) -> Image.Image:
    """Turns a photo as its EXIF says; unlike ImageOps.exif_transpose, it need not write the EXIF again."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any pixel mode to RGB; transparency is laid on white."""
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() >= 2**16:
            raise ValueError(f"gray from {levels.min()} to {levels.max()}, not 0 to {2**16 - 1}")
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


@contextlib.contextmanager
def _named_errors(n_bytes: int) -> Iterator[None]:
    """Turns whatever Pillow raises on foreign bytes into one kind of error."""
    try:
        yield
    except MemoryError:  # the limits are there to prevent it: no image is to blame
        raise
    except Exception as error:  # its plugins raise OSError, SyntaxError, struct.error and more
        # the text of an unidentified image names the buffer that it was read from
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ValueError(
            f"image: {n_bytes} bytes do not decode as a whole image{why};"
            f" give a complete file in one of {', '.join(FORMATS)}"
        ) from error
