"""Decodes the images of all clients in a process of its own, one after the other; the conversing come first.

A damaged or enormous file then costs neither the server's memory nor the time of its threads: what takes too
long, or crashes, ends with that process, and the next image gets a new one. Bytes and JSON cross the pipe;
nothing is unpickled.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from asyncio import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

import mvjax
from mvjax.serve import pixels

_SECONDS = 20.0  # for one image


class _Turn(NamedTuple):
    first: Callable[[], bool]
    come: asyncio.Future[None]


class Decoder:
    """The process, which is started when it is needed.

    Attributes:
      held: bytes of the files that wait, kept by those who ask.
    """

    def __init__(self) -> None:
        self.held = 0
        self._process: subprocess.Process | None = None
        self._busy = False
        self._waiting: list[_Turn] = []

    async def read(
        self, take: Callable[[], bytes], how: pixels.How, *, first: Callable[[], bool]
    ) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the pixels of an image file.

        Args:
          take: returns the file when its turn has come.
          how: what becomes of it.
          first: whether it comes before those that are not; asked when a turn is given.

        Raises:
          ValueError: as `pixels.read`; if it takes too long, or nothing comes back.
        """
        await self._turn(
            first
        )  # given on by the exchange, which a caller that gives up does not stop
        exchange = asyncio.get_running_loop().create_task(self._exchange(take(), how))
        good, answer = await asyncio.shield(exchange)
        if not good:
            raise ValueError(answer.decode())
        return np.frombuffer(answer, np.uint8).reshape(how.size, how.size, 3)

    async def start(self) -> None:
        """Starts the process, so that the first image need not wait for it."""
        folder = str(Path(mvjax.__file__).parents[1])  # where the process finds this package
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # its own folder is not a place to import from
            pixels.__file__,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is the server's business
        )

    async def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _turn(self, first: Callable[[], bool]) -> None:
        if not self._busy:
            self._busy = True
            return
        turn = _Turn(first, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        try:
            await turn.come
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self._give_turn()
            raise

    def _give_turn(self) -> None:
        waiting = [turn for turn in self._waiting if not turn.come.done()]
        self._busy = bool(waiting)
        if waiting:
            chosen = next((turn for turn in waiting if turn.first()), waiting[0])
            self._waiting.remove(chosen)
            chosen.come.set_result(None)

    async def _exchange(self, data: bytes, how: pixels.How) -> tuple[bool, bytes]:
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._ask(data, how)
        except (TimeoutError, OSError, EOFError):
            await self.close()
            return False, b"image: it could not be decoded in time; give a smaller one"
        finally:
            self._give_turn()

    async def _ask(self, data: bytes, how: pixels.How) -> tuple[bool, bytes]:
        if self._process is None or self._process.returncode is not None:
            await self.close()
            await self.start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        head = json.dumps(how._asdict()).encode()
        process.stdin.write(struct.pack(">II", len(head), len(data)) + head)
        process.stdin.write(data)
        await process.stdin.drain()
        good, size = struct.unpack(">?I", await process.stdout.readexactly(5))
        return good, await process.stdout.readexactly(size)
