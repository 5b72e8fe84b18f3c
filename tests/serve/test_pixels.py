"""Image files of clients: decoded in a process of its own, which a bad one does not outlive for long."""

import asyncio
import os
import signal

import numpy as np
import pytest
import standin
from PIL import Image

from mvjax.serve import decoder, pixels

HOW = pixels.How(size=8, resolution=99, center_crop=False, max_bytes=10**6, max_pixels=10_000)


def file(width, height):
    """A PNG that is red to the left and black to the right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 255
    return standin.encoded(Image.fromarray(image))


def test_an_image_is_squashed_or_cut_and_loses_detail():
    squashed = pixels.read(file(32, 16), HOW)
    assert squashed[4, 0].tolist() == [255, 0, 0] and squashed[4, 7].tolist() == [0, 0, 0]
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = 255
    sharp = pixels.read(standin.encoded(Image.fromarray(stripes)), HOW._replace(size=16))
    dull = pixels.read(
        standin.encoded(Image.fromarray(stripes)), HOW._replace(size=16, resolution=8)
    )
    assert np.ptp(sharp) == 255 and np.ptp(dull) < 60
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    cut = pixels.read(standin.encoded(Image.fromarray(wide)), HOW._replace(center_crop=True))
    assert cut.min() == 200


def test_the_process_refuses_crashes_and_comes_back():
    async def run():
        one = decoder.Decoder()
        await one.start()
        good = await one.read(file(8, 8), HOW)
        assert good.shape == (8, 8, 3)
        with pytest.raises(ValueError, match="at most 10000 pixels"):
            await one.read(file(200, 200), HOW)
        with pytest.raises(ValueError, match="do not decode"):
            await one.read(b"junk", HOW)
        given_up = asyncio.create_task(one.read(file(8, 8), HOW))
        await asyncio.sleep(0)
        given_up.cancel()  # a client that goes
        np.testing.assert_array_equal(await one.read(file(8, 8), HOW), good)
        os.kill(one._process.pid, signal.SIGSTOP)
        stuck = asyncio.create_task(one.read(file(8, 8), HOW))
        await asyncio.sleep(0.05)
        os.kill(one._process.pid, signal.SIGKILL)
        with pytest.raises(ValueError, match="could not be decoded"):
            await stuck
        np.testing.assert_array_equal(await one.read(file(8, 8), HOW), good)
        await one.close()

    asyncio.run(run())
