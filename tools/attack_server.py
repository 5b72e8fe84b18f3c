"""Attacks a conversation server with malformed and hostile sessions, and measures what a good client notices.

    mvjax serve runs/quickstart/export/torch --slots 2
    python tools/attack_server.py http://127.0.0.1:8998 --sessions 1000 --pid $(pgrep -f 'mvjax serve')

A good client sends silence in real time, alone first, which is its baseline, and then during the attack.
Printed: its latency and missed frames in both parts, the server's memory, and how each kind of session ended.
The status is 1 if the server is not well, the good client lost its conversation, or memory grew by more than
`--growth`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import io
import json
import random
import struct
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from PIL import Image

FRAME = 1920  # samples
Socket = aiohttp.ClientWebSocketResponse
Attack = Callable[[Socket, random.Random], Awaitable[None]]


def png(size: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of side x side gray pixels in a few kB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    packed = zlib.compressobj(9)
    pixels = b"".join(packed.compress(bytes(side + 1)) for _ in range(side)) + packed.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def opus(frames: int) -> bytes:
    import sphn

    writer = sphn.OpusStreamWriter(24000)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (frames, FRAME)).astype(np.float32)
    return b"".join(writer.append_pcm(frame) for frame in noise)


def unfinished_page(serial: int) -> bytes:
    """An Ogg page whose packet of 255 segments goes on in the next page, and so on."""
    head = b"OggS\x00\x00" + struct.pack("<qIIIB", 0, 42, serial, 0, 255)
    return head + b"\xff" * 255 + bytes(255 * 255)


async def handshake(socket: Socket) -> bool:
    async with asyncio.timeout(20):
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY and message.data[:1] == b"\x00":
                return True
    return False


async def read(socket: Socket, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for _ in socket:
                pass


async def random_bytes(socket: Socket, rng: random.Random) -> None:
    for _ in range(20):
        await socket.send_bytes(rng.randbytes(rng.randrange(2000)))
    await read(socket, 2)


async def giant_message(socket: Socket, rng: random.Random) -> None:
    await socket.send_bytes(
        bytes([rng.choice((1, 8, 9))]) + bytes(rng.choice((2**17, 2**21, 2**25)))
    )
    await read(socket, 3)


async def text_message(socket: Socket, rng: random.Random) -> None:
    await socket.send_str("hello" * rng.randrange(100))
    await read(socket, 2)


async def wrong_order(socket: Socket, rng: random.Random) -> None:
    messages = [b"\x01" + bytes(960), b"\x03\x02", b"\x0a\x05", b"\x06", b"\x00", b"\x08" + png()]
    for _ in range(30):
        await socket.send_bytes(rng.choice(messages))
    await read(socket, 1)


async def vanish(socket: Socket, rng: random.Random) -> None:
    await socket.send_bytes(b"\x08" + png())
    if rng.random() < 0.5:
        await handshake(socket)
        await socket.send_bytes(b"\x01" + bytes(2 * FRAME * rng.randrange(8)))
    transport = socket._response.connection.transport  # type: ignore[union-attr]
    transport.abort()


async def never_read(socket: Socket, rng: random.Random) -> None:
    await socket.send_bytes(b"\x08" + png())
    socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]
    for _ in range(20):
        await socket.send_bytes(b"\x01" + bytes(2 * FRAME))
        await asyncio.sleep(0.08)


async def slow(socket: Socket, rng: random.Random) -> None:
    for byte in b"\x08" + png()[:10]:
        await socket.send_bytes(bytes([byte]))
        await asyncio.sleep(0.2)


async def flood_of_messages(socket: Socket, rng: random.Random) -> None:
    for _ in range(5000):
        await socket.send_bytes(b"\x06")
    await read(socket, 2)


async def flood_of_audio(socket: Socket, rng: random.Random) -> None:
    await socket.send_bytes(b"\x08" + png())
    await handshake(socket)
    for _ in range(100):
        await socket.send_bytes(b"\x01" + rng.randbytes(60_000))
    await read(socket, 2)


async def flood_of_images(socket: Socket, rng: random.Random) -> None:
    for _ in range(50):
        await socket.send_bytes(b"\x08" + png(300))
    await read(socket, 2)


async def decompression_bomb(socket: Socket, rng: random.Random) -> None:
    await socket.send_bytes(b"\x08" + bomb(rng.choice((4000, 6000, 20000))))
    await read(socket, 3)


async def damaged_image(socket: Socket, rng: random.Random) -> None:
    data = bytearray(png(64))
    for _ in range(5):
        data[rng.randrange(len(data))] = rng.randrange(256)
    await socket.send_bytes(b"\x08" + bytes(data))
    await read(socket, 1)


async def damaged_opus(socket: Socket, rng: random.Random) -> None:
    await socket.send_bytes(b"\x08" + png())
    await handshake(socket)
    data = bytearray(OPUS)
    for _ in range(30):
        data[rng.randrange(len(data))] = rng.randrange(256)
    for at in range(0, len(data), 500):
        await socket.send_bytes(b"\x01" + bytes(data[at : at + 500]))
    await read(socket, 1)


async def endless_packet(socket: Socket, rng: random.Random) -> None:
    await socket.send_bytes(b"\x08" + png())
    await handshake(socket)
    for page in range(20):
        await socket.send_bytes(b"\x01" + unfinished_page(page)[: 64 * 2**10])
    await read(socket, 1)


async def bad_requests(socket: Socket, rng: random.Random) -> None:
    requests = [
        '{"request": "text", "text": "' + "x" * 3000 + '"}',
        "[" * 3000,
        '{"request": "stop"}',
        "{",
    ]
    for _ in range(10):
        await socket.send_bytes(b"\x09" + rng.choice(requests).encode())
    await read(socket, 1)


ATTACKS: tuple[tuple[Attack, str], ...] = (
    (random_bytes, "opus"), (random_bytes, "pcm"), (giant_message, "opus"), (text_message, "pcm"),
    (wrong_order, "opus"), (wrong_order, "pcm"), (vanish, "opus"), (vanish, "pcm"), (never_read, "pcm"),
    (slow, "opus"), (flood_of_messages, "pcm"), (flood_of_audio, "pcm"), (flood_of_images, "pcm"),
    (decompression_bomb, "opus"), (damaged_image, "pcm"), (damaged_opus, "opus"), (endless_packet, "opus"),
    (bad_requests, "pcm"),
)  # fmt: skip
OPUS = b""


async def half_open(url: str, rng: random.Random) -> None:
    """A TCP connection that begins a request and says no more."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"GET /api/chat HTTP/1.1\r\nHost: "[: rng.randrange(31)])
    await asyncio.sleep(1)
    writer.transport.abort()


async def attack(url: str, number: int, ends: collections.Counter[str]) -> None:
    """Holds one hostile session, chosen by its number."""
    rng = random.Random(number)
    if number % (len(ATTACKS) + 2) == len(ATTACKS):
        await half_open(url, rng)
        ends["half_open: gone"] += 1
        return
    which, audio = ATTACKS[number % (len(ATTACKS) + 2) % len(ATTACKS)]
    query = {"audio": audio}
    if number % (len(ATTACKS) + 2) > len(ATTACKS):  # nonsense in the query
        query |= {
            "text_topk": str(rng.choice(("-1", "9" * 400, "nan", "\u0000"))),
            "resume": "x" * 1000,
        }
    name = which.__name__
    try:
        async with (
            asyncio.timeout(40),
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}/api/chat", params=query, autoping=True) as socket,
        ):
            await which(socket, rng)
            ends[
                f"{name}: closed by the server, {socket.close_code}"
                if socket.closed
                else f"{name}: left"
            ] += 1
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        ends[f"{name}: {type(error).__name__}"] += 1


class Good:
    """A client that sends silence in real time, and how late each answer came."""

    def __init__(self, url: str) -> None:
        self._url, self.late, self.lost = url, [], False
        self.ready = asyncio.Event()

    async def talk(self) -> None:
        """Talks until it is cancelled, or the server ends it."""
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self._url}/api/chat", params={"audio": "pcm"}) as socket,
            ):
                await socket.send_bytes(b"\x08" + png())
                await handshake(socket)
                self.ready.set()
                await asyncio.gather(self._send(socket), self._hear(socket))
        except (aiohttp.ClientError, OSError):
            self.lost = True
            self.ready.set()

    async def _send(self, socket: Socket) -> None:
        self.start = time.monotonic()
        for frame in range(10**9):
            await socket.send_bytes(b"\x01" + bytes(2 * FRAME))
            await asyncio.sleep(self.start + 0.08 * (frame + 1) - time.monotonic())

    async def _hear(self, socket: Socket) -> None:
        async for message in socket:
            if message.data[:1] == b"\x01":
                due = self.start + 0.08 * len(self.late)
                self.late.append(time.monotonic() - due)
            elif message.data[:1] == b"\x04" and b'"status"' in message.data:
                self.status = json.loads(message.data[1:])
        self.lost = True

    def report(self, start: int, end: int) -> str:
        """Latency of frames, in words."""
        late = 1000 * np.array(self.late[start:end] or [float("nan")])
        p50, p99 = np.percentile(late, (50, 99))
        missed = int((late > 80).sum())
        return (
            f"{len(late)} frames, latency p50 {p50:.1f} ms, p99 {p99:.1f}, largest {late.max():.1f};"
            f" {missed} later than 80 ms ({100 * missed / len(late):.2f}%)"
        )


def memory(pid: int | None) -> float:
    """Resident memory of the server in MB."""
    if pid is None:
        return float("nan")
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


async def run(args: argparse.Namespace) -> int:
    good, ends = Good(args.url), collections.Counter[str]()
    talking = asyncio.create_task(good.talk())
    await good.ready.wait()
    await asyncio.sleep(args.baseline)
    alone, before = len(good.late), memory(args.pid)
    gate, done, middle = asyncio.Semaphore(args.at_once), 0, before

    async def one(number: int) -> None:
        nonlocal done, middle
        async with gate:
            await attack(args.url, number, ends)
        done += 1
        if done == args.sessions // 4:
            middle = memory(args.pid)

    start = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(args.sessions)))
    seconds, attacked = time.monotonic() - start, len(good.late)
    await asyncio.sleep(2)
    after = memory(args.pid)
    talking.cancel()
    async with aiohttp.ClientSession() as session, session.get(f"{args.url}/health") as response:
        health = await response.json()
    for end, count in sorted(ends.items()):
        print(f"{count:5} {end}")
    print(f"{args.sessions} hostile sessions, {args.at_once} at once, in {seconds:.0f} s; {health}")
    print(
        f"memory: {before:.0f} MB before, {middle:.0f} after a quarter of them, {after:.0f} at the end"
    )
    print(f"good client alone:  {good.report(0, alone)}")
    print(
        f"good client during: {good.report(alone, attacked)}; last status {getattr(good, 'status', None)}"
    )
    grown = after - middle > args.growth if args.pid else False
    return 1 if good.lost or health["status"] != "ok" or grown else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="of the server, which needs two slots or more")
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=10)
    parser.add_argument(
        "--baseline", type=float, default=20.0, help="seconds without attacks (%(default)s)"
    )
    parser.add_argument("--pid", type=int, help="of the server, for its memory (Linux)")
    parser.add_argument("--growth", type=float, default=50.0,
        help="MB that memory may grow after a quarter of the sessions (%(default)s)")  # fmt: skip
    args = parser.parse_args()
    global OPUS
    OPUS = opus(25)
    return asyncio.run(run(args))


if __name__ == "__main__":
    sys.exit(main())
