"""Image files of clients: decoded in a process of its own, which a bad one does not outlive for long."""

import asyncio
import os
import signal
import time
from concurrent import futures

import numpy as np
import pytest
import standin
from PIL import Image

from mvjax.serve import conversation, decoder, limits, metrics, microphone, pixels, query, sight
from mvjax.serve import engine as engine_lib

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


def taken(data):
    return {"take": lambda: data, "how": HOW, "first": lambda: False}


def test_the_process_refuses_crashes_and_comes_back():
    async def run():
        one = decoder.Decoder()
        await one.start()
        good = await one.read(**taken(file(8, 8)))
        assert good.shape == (8, 8, 3)
        with pytest.raises(ValueError, match="at most 10000 pixels"):
            await one.read(**taken(file(200, 200)))
        with pytest.raises(ValueError, match="do not decode"):
            await one.read(**taken(b"junk"))
        given_up = asyncio.create_task(one.read(**taken(file(8, 8))))
        await asyncio.sleep(0)
        given_up.cancel()  # a client that goes
        np.testing.assert_array_equal(await one.read(**taken(file(8, 8))), good)
        os.kill(one._process.pid, signal.SIGSTOP)
        stuck = asyncio.create_task(one.read(**taken(file(8, 8))))
        await asyncio.sleep(0.05)
        os.kill(one._process.pid, signal.SIGKILL)
        with pytest.raises(ValueError, match="could not be decoded"):
            await stuck
        np.testing.assert_array_equal(await one.read(**taken(file(8, 8))), good)
        await one.close()

    asyncio.run(run())


def test_the_newest_file_alone_waits_and_a_conversation_comes_first(monkeypatch):
    """One file a client, so many bytes of all; a conversation begins without its image when that is late."""

    async def run():
        shown, told, seen = [], [], []
        one = decoder.Decoder()
        gate = asyncio.Event()

        async def ask(data, how):
            await gate.wait()
            shown.append(data)
            return True, bytes(8 * 8 * 3)

        one._ask = ask
        served = engine_lib.Engine(standin.speaker(), 1, metrics.Metrics())

        def submit(work):
            seen.append(work)
            done = futures.Future()
            done.set_result(None)
            return done

        monkeypatch.setattr(served, "submit", submit)
        few = limits.Limits(images=(1.0, 9.0), waiting_image_bytes=40)
        asked = query.parse({"audio": "pcm"}, served.speaker.talk)
        with futures.ThreadPoolExecutor(1) as executor:
            clients = [
                sight.Sight(served, one, executor, few, asked, told.append) for _ in range(4)
            ]
            stuck, talking, waiting, late = clients
            stuck.show(b"stuck", 0.0)
            await asyncio.sleep(0)
            for client, word in ((waiting, b"w"), (talking, b"t")):
                for k in range(5):  # each in place of the one before
                    client.show(word * 9 + bytes([k]), 0.0)
                    await asyncio.sleep(0)
            assert one.held == 20 and not told
            late.show(b"one too many", 0.0)
            assert "too many wait" in told[0] and late.decided.is_set() and one.held == 20
            before = time.monotonic()
            who = conversation.Conversation({}, 0, 0, microphone.Microphone(8))
            await talking.begin(who)
            assert time.monotonic() - before < 2 and not seen  # begun without it
            assert waiting.decided.is_set()
            gate.set()
            while len(shown) < 3 or not seen:
                await asyncio.sleep(0.01)
            assert shown == [b"stuck", b"t" * 9 + b"\4", b"w" * 9 + b"\4"]
            assert one.held == 0 and len(seen) == 1  # and shown late
            gate.clear()
            stuck.show(b"stuck", 0.0)
            await asyncio.sleep(0)
            waiting.show(b"gone", 0.0)
            await asyncio.sleep(0)
            waiting.close()
            assert one.held == 0
            stuck.hide()
            gate.set()
            talking.show(b"next", 0.0)
            while len(seen) < 2:
                await asyncio.sleep(0.01)
            assert shown[3:] == [b"stuck", b"next"]

    monkeypatch.setattr(sight, "PATIENCE_SECONDS", 0.1)
    asyncio.run(asyncio.wait_for(run(), 20))
