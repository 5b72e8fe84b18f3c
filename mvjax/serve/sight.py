"""The images of one connection: decoded and encoded off the event loop and the engine; the newest counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np

from mvjax.data import images
from mvjax.serve import conversation as conversation_lib
from mvjax.serve import decoder as decoder_lib
from mvjax.serve import engine as engine_lib
from mvjax.serve import limits as limits_lib
from mvjax.serve import pixels, query

PATIENCE_SECONDS = 3.0  # a conversation waits so long for its image, then begins without it


class Sight:
    """What a client shows.

    Args:
      engine: of the server.
      decoder: of the files of all clients.
      executor: encodes the pixels of all clients, one after the other.
      limits: of bytes, pixels and rate.
      asked: how images are cut and reduced.
      complain: told what is wrong with an image file, which changes nothing else.
    """

    def __init__(
        self,
        engine: engine_lib.Engine,
        decoder: decoder_lib.Decoder,
        executor: futures.Executor,
        limits: limits_lib.Limits,
        asked: query.Query,
        complain: Callable[[str], None],
    ) -> None:
        self._engine, self._decoder, self._executor = engine, decoder, executor
        self._limits = limits
        self._asked, self._complain = asked, complain
        self._rate = limits_lib.Bucket(*limits.images)
        self._file: bytes | None = None  # waits for the decoder; a newer one replaces it
        self._due = 0.0  # when a conversation begins without it
        self._pixels: np.ndarray | None = None
        self._who: conversation_lib.Conversation | None = None
        self._work: asyncio.Task | None = None
        self.decided = asyncio.Event()  # an image, or none, was chosen

    def show(self, data: bytes, now: float) -> None:
        """Takes an image file.

        Raises:
          limits.BrokenLimit: if they come too often.
        """
        if not self._rate.take(1.0, now):
            rate, burst = self._limits.images
            raise limits_lib.BrokenLimit(f"at most {rate:g} images a second ({burst:g} at once)")
        if not self._has_room(len(data)):
            self._complain("image: too many wait to be decoded; send it again in a moment")
            self.decided.set()
            return
        self._hold(data)
        if self._work is None or self._work.done():
            loop = asyncio.get_running_loop()
            self._due = loop.time() + PATIENCE_SECONDS
            late = loop.call_at(self._due, self.decided.set)
            self._work = loop.create_task(self._look())
            self._work.add_done_callback(lambda _: late.cancel())

    def hide(self) -> None:
        """Takes the wish to show nothing."""
        self._give_up()
        self._pixels = None
        self.decided.set()
        if (who := self._who) is not None:
            self._engine.submit(lambda: self._engine.see(who, None))

    async def begin(self, who: conversation_lib.Conversation) -> None:
        """Shows what there is to a new conversation, and all that follows: late, what is not ready soon."""
        self._who = who
        await self._see()
        if self._work is not None and not self._work.done():
            left = self._due - asyncio.get_running_loop().time()
            await asyncio.wait([self._work], timeout=max(left, 0.0))

    def follow(self, who: conversation_lib.Conversation) -> None:
        """Shows all that follows to a conversation that is resumed."""
        self._who = who

    def close(self) -> None:
        """Gives up what is being worked on."""
        self._who = None
        self._give_up()

    def _give_up(self) -> None:
        self._hold(None)
        if self._work is not None:
            self._work.cancel()
            self._work = None

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more may wait; those without a slot leave room for those with one."""
        most = self._limits.waiting_image_bytes // (1 if self._who else 2)
        return self._decoder.held - len(self._file or b"") + size <= most

    def _hold(self, file: bytes | None) -> None:
        self._decoder.held += len(file or b"") - len(self._file or b"")
        self._file = file

    def _take(self) -> bytes:
        file = self._file
        assert file is not None
        self._hold(None)
        return file

    async def _look(self) -> None:
        """Works until no file waits."""
        while self._file is not None:
            await self._look_at_newest()

    async def _look_at_newest(self) -> None:
        how = pixels.How(
            size=self._engine.speaker.model.sizes.image_size,
            resolution=self._asked.image_resolution,
            center_crop=self._asked.center_crop,
            max_bytes=self._limits.message_bytes,
            max_pixels=self._limits.image_pixels,
        )
        try:
            decoded = await self._decoder.read(self._take, how, first=lambda: self._who is not None)
        except ValueError as error:
            self._complain(str(error))
            return
        self._pixels = images.normalize(decoded)[None]
        self.decided.set()
        await self._see()

    async def _see(self) -> None:
        who, shown = self._who, self._pixels
        if who is None or shown is None:
            return
        image = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._encode, shown
        )
        if self._pixels is shown and self._who is who:
            see = self._engine.submit(lambda: self._engine.see(who, image))
            await asyncio.wrap_future(see)

    def _encode(self, shown: np.ndarray) -> Any:
        model = self._engine.speaker.model
        try:
            return model.encode_image(shown)
        finally:
            model.end_thread()  # nothing tells a thread of a pool that it is about to end
