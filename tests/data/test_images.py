"""Images: every pixel mode to RGB, EXIF rotation, limits, reference-like resizing, normalising."""

import io

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.full((5, 7), 130, np.uint8))
    deep = Image.fromarray(np.full((5, 7), 130 * 257, np.uint16))
    image = deep if mode == "I;16" else grey.convert(mode)
    data = _bytes(image, format="TIFF" if mode == "CMYK" else "PNG")
    found = images.decode(data)
    assert found.shape == (5, 7, 3) and found.dtype == np.uint8
    if mode != "1":
        np.testing.assert_allclose(found, 130, atol=1)


@pytest.mark.parametrize("palette", [False, True])
def test_transparent_parts_show_white(palette):
    image = Image.new("RGBA", (4, 3), (200, 10, 10, 255))
    image.putpixel((1, 2), (0, 0, 0, 0))
    image = image.convert("P") if palette else image
    found = images.decode(_bytes(image))
    assert found[2, 1].tolist() == [255, 255, 255]
    np.testing.assert_allclose(found[0, 0], [200, 10, 10], atol=8)


def test_exif_rotation_is_applied():
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :16] = 255  # the left half is white
    image = Image.fromarray(picture)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: left becomes top
    found = images.decode(_bytes(image, format="JPEG", exif=exif.tobytes(), quality=95))
    assert found.shape == (32, 16, 3)
    assert found[:14].min() > 200 and found[-14:].max() < 50


def test_too_many_bytes_or_pixels_are_refused_with_numbers():
    data = images.encode_png(_picture())
    with pytest.raises(ValueError, match=f"at most 100 bytes, got {len(data)}"):
        images.decode(data, max_bytes=100)
    with pytest.raises(ValueError, match="at most 400 pixels, got 29x17 = 493"):
        images.decode(data, max_pixels=400)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_and_foreign_bytes_are_refused(form):
    data = _bytes(Image.fromarray(_picture(64, 64)), format=form)
    for broken in (data[: len(data) // 2], data[:20], b"", b"hello, this is no image"):
        with pytest.raises(ValueError, match=f"image: {len(broken)} bytes do not decode"):
            images.decode(broken)


@pytest.mark.parity
def test_resizing_is_the_reference_within_one_level():
    torch = pytest.importorskip("torch")
    picture = _picture(40, 60)
    ours = images.resize_square(picture, 24)
    assert ours.shape == (24, 24, 3) and ours.dtype == np.uint8
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None].float(),
        size=(24, 24),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    theirs = theirs[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
    assert np.abs(ours.astype(np.float32) - theirs).max() <= 1


def test_a_square_of_the_right_size_is_left_alone():
    picture = _picture(24, 24)
    assert images.resize_square(picture, 24) is picture


def test_normalising_maps_bytes_to_minus_one_to_one():
    levels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    found = images.normalise(np.broadcast_to(levels, (2, 4, 5, 3)))
    assert found.shape == (2, 4, 5, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[1, 3, 4], [-1, -0.6, 1], atol=1e-6)
