"""A stand-in model that echoes: it answers each frame with the loudness that it heard, and a word for it."""

import asyncio
import contextlib
import io
import json
import threading
import time

import aiohttp
import numpy as np
from aiohttp import web
from PIL import Image

from mvjax import types
from mvjax.runtimes import interface, loading
from mvjax.runtimes import slots as slots_lib
from mvjax.serve import access, app, limits

SIZES = interface.Sizes(
    delays=(0, 0, 1, 0, 1), codebooks_out=2, text_vocab=40, audio_vocab=64, image_size=8
)
WORDS = 30  # text ids from 4 on
SEEN = 0.015  # gate where an image is seen
TONE = np.sin(2 * np.pi * 300 * (np.arange(types.FRAME_SAMPLES) + 0.5) / types.SAMPLE_RATE)


class Engine:
    """Says what it heard in the last frame; `seconds` is what a step takes."""

    def __init__(self, model, rows):
        self.model, self.images = model, [0.0] * rows

    def clear(self, row):
        pass

    def show(self, row, image):
        self.images[row] = image

    def step(self, inputs):
        time.sleep(self.model.seconds)
        self.model.steps.append(inputs)
        self.model.threads.add(threading.current_thread().name)
        if self.model.broken:
            raise RuntimeError("/secret/path: the model is broken")
        level = np.clip(inputs.column[:, 3], 0, 63)
        text = np.where(inputs.text >= 0, inputs.text, 4 + level % WORDS)
        gate = np.where(inputs.sees, SEEN, 0.0)
        audio = np.stack([level, level], axis=1)
        return slots_lib.Outputs(text, audio, gate, None)


class Model(slots_lib.BatchedModel):
    """As `interface.Model`."""

    sizes = SIZES

    def __init__(self):
        self.seconds, self.broken, self.steps, self.seen = 0.0, False, [], []
        self.threads = set()  # that used it and have not said that they end

    def encode_image(self, pixels):
        self.sizes.check_pixels(pixels)
        self.seen.append(pixels)
        self.threads.add(threading.current_thread().name)
        return float(pixels.mean())

    def end_thread(self):
        self.threads.discard(threading.current_thread().name)

    def engine(self, rows, *, probes):
        return Engine(self, rows)


class Stream:
    """Codes are the loudness, 0 to 63."""

    def __init__(self, codec):
        self.codec, self.resets = codec, 0

    def encode(self, audio):
        level = int(np.abs(audio).max() * 63 + 0.5)
        if level == self.codec.deaf_at:
            raise RuntimeError("/secret/path: the codec is broken")
        return np.full((1, 2, 1), level, np.int32)

    def decode(self, codes):
        return (TONE * codes[0, 0, 0] / 63)[None].astype(np.float32)

    def reset(self):
        self.resets += 1


class Codec:
    """As `codec.interface.Codec`."""

    deaf_at = None

    def encode(self, audio):
        raise NotImplementedError

    decode = encode

    def stream(self, *, batch=1):
        return Stream(self)


class Tokenizer:
    """Ids from 4 on are the words w4, w5 and so on."""

    def encode(self, text):
        return [int(word.removeprefix("w")) for word in text.split()]

    def id_to_piece(self, token):
        return f"▁w{token}"

    def is_control(self, token):
        return token in (1, 2)

    def is_byte(self, token):
        return False


def speaker():
    return loading.Speaker(Model(), Codec(), Tokenizer(), "standin", None)


@contextlib.asynccontextmanager
async def serving(who=None, *, slots=1, token=None, origins=(), static=None, xa_start=0, **changes):
    """Serves; yields (its address, the speaker)."""
    who = who or speaker()
    options = app.Options(
        access=access.Access(token, origins, "127.0.0.1"),
        slots=slots,
        limits=limits.Limits(**changes),
        xa_start=xa_start,
        static=static,
    )
    runner = web.AppRunner(app.make(who, options), keepalive_timeout=5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with asyncio.timeout(60):
            yield f"http://127.0.0.1:{port}", who
    finally:
        await runner.cleanup()


def encoded(image):
    """A PNG file of a Pillow image."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def picture(color=128, size=8):
    """A PNG file of one gray."""
    return encoded(Image.new("RGB", (size, size), (color, color, color)))


class Client:
    """A socket of a server, and what came from it."""

    def __init__(self, socket):
        self.socket, self.heard, self.words, self.news, self.errors = socket, [], [], [], []
        self.code = None
        self.spoken = True  # every frame has a word

    async def send(self, kind, payload=b""):
        await self.socket.send_bytes(bytes([kind]) + payload)

    async def ask(self, **request):
        await self.send(9, json.dumps(request).encode())

    async def say(self, level, frames=1):
        """Frames of PCM of a loudness of the stand-in's 0 to 63."""
        pcm = np.full(types.FRAME_SAMPLES * frames, level / 63 * 32767, "<i2")
        await self.send(1, pcm.tobytes())

    async def take(self):
        """Takes one message; returns its kind, None at the end."""
        message = await self.socket.receive(timeout=10)
        if message.type is not aiohttp.WSMsgType.BINARY:
            self.code = self.socket.close_code
            return None
        kind, rest = message.data[0], message.data[1:]
        if kind == 1:
            self.heard.append(rest)
        elif kind == 7:
            self.words.append((rest[0], rest[1:].decode()))
        elif kind == 4:
            self.news.append(json.loads(rest))
        elif kind == 5:
            self.errors.append(rest.decode())
        return kind

    async def until(self, kind):
        """Takes messages until one of a kind, or the end."""
        while (taken := await self.take()) not in (kind, None):
            pass
        return taken == kind

    async def frames(self, count):
        """Takes messages until so many frames are there, with their words."""
        while len(self.heard) < count or (self.spoken and len(self.words) < count):
            assert await self.take() is not None, self.errors

    async def echo(self, level):
        """Says a loudness until the answer has it; returns the number of frames that it took."""
        for said in range(1, 12):
            await self.say(level)
            await self.frames(len(self.heard) + 1)
            if self.levels()[-1] == level:
                return said
        raise AssertionError(self.levels())

    def levels(self):
        """The loudness of the frames that came, 0 to 63."""
        return [round(np.frombuffer(pcm, "<i2").max() / 32767 * 63) for pcm in self.heard]

    def told(self, kind):
        """The JSON messages of a type."""
        return [news for news in self.news if news["type"] == kind]


@contextlib.asynccontextmanager
async def talking(url, *, image=None, wait=True, headers=None, **query):
    """Connects with PCM, unless the query says else; yields the client, after its handshake."""
    query = {"audio": "pcm", **{name: str(value) for name, value in query.items()}}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/api/chat", params=query, headers=headers) as socket,
    ):
        client = Client(socket)
        if image is not None:
            await client.send(8, image)
        elif query["audio"] == "pcm":
            await client.ask(request="no_image")
        if wait:
            assert await client.until(0), client.errors
        yield client
