"""Images: every pixel mode to RGB, EXIF rotation, limits, reference-like resizing, normalizing."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mvjax.config import schema
from mvjax.data import images


def _bytes(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **({"format": "PNG"} | options))
    return file.getvalue()


def _picture(height: int = 17, width: int = 29) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_png_comes_back_exactly():
    np.testing.assert_array_equal(images.decode(images.encode_png(_picture())), _picture())


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *((mode, "PNG") for mode in ("L", "1", "P", "LA", "RGBA", "I;16")),
        ("I;16", "TIFF"),
        ("CMYK", "TIFF"),
        ("CMYK", "JPEG"),
        ("YCbCr", "JPEG"),
    ],
)
def test_every_mode_becomes_rgb(mode, form):
    gray = Image.fromarray(np.full((5, 7), 130, np.uint8))
    deep = Image.fromarray(np.full((5, 7), 130 * 257, np.uint16))
    data = _bytes(deep if mode == "I;16" else gray.convert(mode), format=form)
    found = images.decode(data)
    assert found.shape == (5, 7, 3) and found.dtype == np.uint8
    if mode != "1":
        np.testing.assert_allclose(found, 130, atol=1)


def test_floating_point_is_refused_by_name():
    data = _bytes(Image.fromarray(np.full((5, 7), 0.5, np.float32)), format="TIFF")
    assert "got floating point" in images.problems(data)[0]
    with pytest.raises(ValueError, match="got floating point"):
        images.decode(data)


@pytest.mark.parametrize("level", [-1, 2**16])
def test_gray_of_more_than_16_bits_is_refused_by_name(level):
    deep = _bytes(Image.fromarray(np.full((5, 7), level, np.int32)), format="TIFF")
    with pytest.raises(ValueError, match="not 0 to 65535"):
        images.decode(deep)


@pytest.mark.parametrize("palette", [False, True])
def test_transparent_parts_show_white(palette):
    image = Image.new("RGBA", (4, 3), (200, 10, 10, 255))
    image.putpixel((1, 2), (0, 0, 0, 0))
    image = image.convert("P") if palette else image
    found = images.decode(_bytes(image))
    assert found[2, 1].tolist() == [255, 255, 255]
    np.testing.assert_allclose(found[0, 0], [200, 10, 10], atol=8)


@pytest.mark.parametrize(
    ("tag", "turned"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: x[::-1].swapaxes(0, 1)),
        (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda x: x[:, ::-1].swapaxes(0, 1)),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(tag, turned, form):
    corners = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255] * 3, [0] * 3, [99] * 3]])
    picture = np.kron(corners, np.ones((16, 16, 1))).astype(np.uint8)  # blocks as JPEG has them
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    found = images.decode(_bytes(Image.fromarray(picture), format=form, exif=exif, **options))
    assert found.shape == turned(picture).shape
    np.testing.assert_allclose(found, turned(picture), atol=4)


def test_too_many_bytes_or_pixels_are_refused_with_numbers():
    data = images.encode_png(_picture())
    for limits, message in (
        (schema.LimitsConfig(image_bytes=100), rf"at most 100 bytes .*, got {len(data)}"),
        (schema.LimitsConfig(image_pixels=400), r"at most 400 pixels .*, got 29x17 = 493"),
    ):
        with pytest.raises(ValueError, match=message):
            images.decode(data, limits=limits)
        (found,) = images.problems(data, limits)
        assert re.search(message, found)
    assert images.problems(data) == []


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_and_foreign_bytes_are_refused(form):
    data = _bytes(Image.fromarray(_picture(64, 64)), format=form)
    for broken in (data[: len(data) // 2], data[:20], b"", b"hello, this is no image"):
        with pytest.raises(ValueError, match=f"image: {len(broken)} bytes do not decode") as told:
            images.decode(broken)
        assert "BytesIO" not in str(told.value)


SHAPES = [(40, 60), (37, 53), (1, 7), (5, 3), (24, 91), (211, 24), (301, 199), (20, 1201)]


@pytest.mark.parity
@pytest.mark.parametrize("size", [24, 35, 448])
@pytest.mark.parametrize("shape", SHAPES)
def test_resizing_is_within_two_gray_levels_of_torch(shape, size):
    """What torchvision calls for uint8 pixels, as kyuteye_pt resizes; 1.4% of noise differs at most."""
    torch = pytest.importorskip("torch")
    picture = _picture(*shape)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None],
        size=(size, size),
        mode="bicubic",
        antialias=True,
    )
    levels = images.resize_square(picture, size).astype(int) - theirs[0].permute(1, 2, 0).numpy()
    assert np.abs(levels).max() <= 2
    assert (levels != 0).mean() < 0.015 and (np.abs(levels) > 1).mean() < 1e-4


@pytest.mark.parametrize("size", [24, 35])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (800, 601)])
def test_resizing_gives_the_bits_of_pillow(shape, size):
    """What kyuteye_mlx calls: `img.resize((size, size), resample=3)`."""
    picture = _picture(*shape)
    theirs = Image.fromarray(picture).resize((size, size), resample=3)
    ours = images.resize_square(picture, size)
    assert ours.shape == (size, size, 3) and ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_resizing_begins_with_upright_opaque_rgb():
    """EXIF rotation, alpha, gray and palette are dealt with before."""
    picture = _picture(37, 53)
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.concatenate([picture, np.full((37, 53, 1), 255, np.uint8)], axis=2)
    gray = Image.fromarray(picture[:, :, 0])
    palette = Image.fromarray(picture).quantize(64)
    cases = {
        "rotated": (_bytes(Image.fromarray(picture), exif=exif), picture[::-1].swapaxes(0, 1)),
        "alpha": (_bytes(Image.fromarray(alpha)), picture),
        "gray": (_bytes(gray), np.asarray(gray.convert("RGB"))),
        "palette": (_bytes(palette), np.asarray(palette.convert("RGB"))),
    }
    for name, (data, upright) in cases.items():
        resized = images.resize_square(images.decode(data), 24)
        want = images.resize_square(np.ascontiguousarray(upright), 24)
        np.testing.assert_array_equal(resized, want, err_msg=name)


@pytest.mark.parametrize("shape", [(37, 53), (1, 7), (61, 24)])
def test_resizing_is_the_formula_within_one_level(shape):
    """Rows, a rounding, columns, a rounding, with the cubic kernel in floating point."""
    picture = _picture(*shape)
    rows = _filtered(picture.astype(np.float64).swapaxes(0, 1), 35).swapaxes(0, 1)
    want = _filtered(rows, 35)
    ours = images.resize_square(picture, 35)
    assert np.abs(ours - want).max() <= 1 and np.mean(ours != want) < 0.02


def _filtered(image: np.ndarray, size: int) -> np.ndarray:
    """`_exactly`, in whole numbers from 0 to 255."""
    return np.clip(np.rint(_exactly(image, size)), 0, 255)


def _exactly(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the first axis; Catmull-Rom, stretched to cover what a new pixel stands for."""
    old = len(image)
    stretch = max(old / size, 1.0)
    new, pixel = np.mgrid[:size, :old]
    x = np.abs((pixel + 0.5 - old / size * (new + 0.5)) / stretch)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("ij,jkc->ikc", weights, image)


def test_large_noise_and_edges_stay_in_range():
    checks = np.zeros((31, 17, 3), np.uint8)
    checks[::2, ::3] = 255
    ours = images.resize_square(checks, 64)
    assert ours.min() == 0 and ours.max() == 255  # overshoot is cut, not wrapped
    flat = np.full((9, 1000, 3), (0, 77, 255), np.uint8)
    np.testing.assert_array_equal(
        images.resize_square(flat, 24), flat[:1, :1] + np.zeros((24, 24, 3))
    )


def test_a_square_of_the_right_size_is_left_alone():
    picture = _picture(24, 24)
    assert images.resize_square(picture, 24) is picture


def test_normalizing_maps_bytes_to_minus_one_to_one():
    levels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    found = images.normalize(np.broadcast_to(levels, (2, 4, 5, 3)))
    assert found.shape == (2, 4, 5, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[1, 3, 4], [-1, -0.6, 1], atol=1e-6)


def _chunk(name: bytes, body: bytes, check: int = 0) -> bytes:
    check ^= zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def _exif(*entries: bytes, value: bytes = b"") -> bytes:
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + value


_TURNED = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)  # by a quarter
_AT = struct.pack("<I", 8 + 2 + 2 * 12 + 4)  # behind a table of two entries


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (struct.pack("<HHI", 0x11A, 5, 1), struct.pack("<iI", -1, 0)),  # an unsigned -1
        (struct.pack("<HHI", 0x9204, 10, 1), struct.pack("<ii", -1, 0)),  # over zero
    ],
)
def test_exif_that_cannot_be_written_again_turns_the_picture(entry, value):
    picture = np.kron(np.eye(3)[:, :2, None] * [200, 90, 30], np.ones((16, 16, 1))).astype(np.uint8)
    data = _bytes(Image.fromarray(picture), format="JPEG", quality=95, subsampling=0)
    body = b"Exif\0\0" + _exif(_TURNED, entry + _AT, value=value)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    np.testing.assert_allclose(images.decode(data), picture[::-1].swapaxes(0, 1), atol=4)


@pytest.mark.parametrize(
    "metadata",
    [
        _chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(3 << 20))),  # Pillow: too large
        _chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 << 20))),
        _chunk(b"iCCP", b"profile\0\0junk"),
        _chunk(b"eXIf", b"II*\0\xff\xff\xff\x7fjunk"),
        _chunk(b"pHYs", b"x"),
        _chunk(b"sRGB", b""),
        _chunk(b"acTL", b"x"),
        _chunk(b"tEXt", b"key\0value", check=1),
    ],
)
def test_metadata_never_costs_a_png(metadata):
    png = images.encode_png(_picture())
    np.testing.assert_array_equal(images.decode(png[:33] + metadata + png[33:]), _picture())


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE1, b"Exif\0\0junk"),
        (0xE1, b"Exif\0\0" + _exif(struct.pack("<HHI", 0x112, 2, 2) + b"6\0\0\0")),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0junk"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0junk"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\xffjunk"),
        (0xFE, b"\xff\xff"),
    ],
)
def test_metadata_never_costs_a_jpeg(marker, body):
    plain = _bytes(Image.fromarray(_picture()), format="JPEG")
    data = plain[:2] + struct.pack(">HH", 0xFF00 | marker, len(body) + 2) + body + plain[2:]
    np.testing.assert_array_equal(images.decode(data), images.decode(plain))


def test_pixels_that_are_cut_off_are_no_metadata():
    for form in ("PNG", "JPEG"):
        data = _bytes(Image.fromarray(_picture(64, 64)), format=form)
        for cut in (len(data) // 2, len(data) - 200):
            with pytest.raises(ValueError, match="do not decode as a whole image"):
                images.decode(data[:cut])
