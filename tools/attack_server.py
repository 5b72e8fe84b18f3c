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
import functools
import io
import json
import multiprocessing
import os
import random
import struct
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from concurrent import futures
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


@functools.cache
def bomb(side: int, rows: int) -> bytes:
    """A PNG of side x side gray pixels in a few kB; only so many rows are there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    packed = zlib.compressobj(9)
    pixels = b"".join(packed.compress(bytes(side + 1)) for _ in range(rows)) + packed.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@functools.cache
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
    await socket.send_bytes(
        b"\x08" + bomb(*rng.choice(((4000, 4000), (5400, 5400), (20000, 9), (5400, 9))))
    )
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
    data = bytearray(opus(25))
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


def hold(url: str, numbers: range, at_once: int) -> collections.Counter[str]:
    """Holds the hostile sessions of some numbers, so many at once; returns how they ended."""
    ends = collections.Counter[str]()

    async def run() -> None:
        gate = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with gate:
                await attack(url, number, ends)

        await asyncio.gather(*(one(number) for number in numbers))

    asyncio.run(run())
    return ends


def _hold_politely(url: str, numbers: range, at_once: int) -> collections.Counter[str]:
    os.nice(19)  # attackers do not share the processors of a server in earnest
    return hold(url, numbers, at_once)


class Good:
    """A client that sends silence in real time: when its answers came, and what the server says of itself."""

    def __init__(self, url: str) -> None:
        self._url, self.lost = url, False
        self.heard: list[float] = []
        self.status: list[dict] = []
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
        start = time.monotonic()
        for frame in range(10**9):
            await socket.send_bytes(b"\x01" + bytes(2 * FRAME))
            await asyncio.sleep(start + 0.08 * (frame + 1) - time.monotonic())

    async def _hear(self, socket: Socket) -> None:
        async for message in socket:
            if message.data[:1] == b"\x01":
                self.heard.append(time.monotonic())
            elif message.data[:1] == b"\x04" and b'"status"' in message.data:
                self.status.append(json.loads(message.data[1:]))
        self.lost = True

    def report(self, frames: tuple[int, int], status: tuple[int, int]) -> tuple[int, str]:
        """Returns the frames that missed their deadline, of a part of the talk, and the part in words."""
        gaps = 1000 * np.diff(self.heard[frames[0] : frames[1]])
        p50, p99 = np.percentile(gaps, (50, 99))
        first, last = self.status[status[0]], self.status[status[1] - 1]
        late, skipped = (last[name] - first[name] for name in ("missed", "skipped"))
        return late + skipped, (
            f"{len(gaps)} frames, {late} answered later than 80 ms, {skipped} skipped; between answers p50"
            f" {p50:.1f} ms, p99 {p99:.1f}, largest {gaps.max():.1f}; the server says"
            f" p50 {last['p50_ms']} ms, p99 {last['p99_ms']} of the last minute"
        )


def memory(pid: int | None) -> float:
    """Resident memory of the server in MB."""
    if pid is None:
        return float("nan")
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


async def run(args: argparse.Namespace) -> int:
    good, loop = Good(args.url), asyncio.get_running_loop()
    talking = asyncio.create_task(good.talk())
    await good.ready.wait()
    await asyncio.sleep(2)
    marks = [(len(good.heard), len(good.status) - 1)]
    await asyncio.sleep(args.baseline)
    marks.append((len(good.heard), len(good.status)))
    memories, start = [memory(args.pid)], time.monotonic()
    ends = collections.Counter[str]()
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as attackers:
        for quarter in range(4):
            bounds = (quarter * args.sessions // 4, (quarter + 1) * args.sessions // 4)
            part = _hold_politely, args.url, range(*bounds), args.at_once
            ends += await loop.run_in_executor(attackers, *part)
            memories.append(memory(args.pid))
    seconds = time.monotonic() - start
    marks.append((len(good.heard), len(good.status)))
    talking.cancel()
    async with aiohttp.ClientSession() as session, session.get(f"{args.url}/health") as response:
        health = await response.json()
    for end, count in sorted(ends.items()):
        print(f"{count:5} {end}")
    print(f"{ends.total()} hostile sessions, {args.at_once} at once, in {seconds:.0f} s; {health}")
    print(f"memory in MB before, and after each quarter: {', '.join(f'{m:.0f}' for m in memories)}")
    (a, i), (b, j), (c, k) = marks
    for name, part in (("alone", ((a, b), (i, j))), ("during", ((b, c), (j - 1, k)))):
        missed, text = good.report(*part)
        print(f"good client {name}: {text}; missed {100 * missed / (part[0][1] - part[0][0]):.2f}%")
    grown = memories[-1] - memories[1] > args.growth if args.pid else False
    return 1 if good.lost or health["status"] != "ok" or grown else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="of the server, which needs two slots or more")
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=10)
    parser.add_argument(
        "--baseline", type=float, default=30.0, help="seconds without attacks (%(default)s)"
    )
    parser.add_argument("--pid", type=int, help="of the server, for its memory (Linux)")
    parser.add_argument("--growth", type=float, default=100.0,
        help="MB that memory may grow after a quarter of the sessions (%(default)s)")  # fmt: skip
    args = parser.parse_args()
    return asyncio.run(run(args))


if __name__ == "__main__":
    sys.exit(main())
