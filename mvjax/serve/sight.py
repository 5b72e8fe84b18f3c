"""The images of one connection: decoded and encoded off the event loop and the engine; the newest counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent import futures

import numpy as np

from mvjax.data import images
from mvjax.serve import conversation as conversation_lib
from mvjax.serve import decoder as decoder_lib
from mvjax.serve import engine as engine_lib
from mvjax.serve import limits as limits_lib
from mvjax.serve import pixels, query


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
        self._work = asyncio.get_running_loop().create_task(self._look(data, self._work))

    def hide(self) -> None:
        """Takes the wish to show nothing."""
        if self._work is not None:
            self._work.cancel()
        self._pixels = None
        self.decided.set()
        if (who := self._who) is not None:
            self._engine.submit(lambda: self._engine.see(who, None))

    async def begin(self, who: conversation_lib.Conversation) -> None:
        """Shows what there is to a new conversation, and all that follows."""
        if self._work is not None:
            await asyncio.wait([self._work])
        self._who = who
        await self._see()

    def follow(self, who: conversation_lib.Conversation) -> None:
        """Shows all that follows to a conversation that is resumed."""
        self._who = who

    def close(self) -> None:
        """Gives up what is being worked on."""
        self._who = None
        if self._work is not None:
            self._work.cancel()

    async def _look(self, data: bytes, before: asyncio.Task | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        if self._work is not asyncio.current_task():
            return  # a newer one has come
        how = pixels.How(
            size=self._engine.speaker.model.sizes.image_size,
            resolution=self._asked.image_resolution,
            center_crop=self._asked.center_crop,
            max_bytes=self._limits.message_bytes,
            max_pixels=self._limits.image_pixels,
        )
        try:
            decoded = await self._decoder.read(data, how)
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
            self._executor, self._engine.speaker.model.encode_image, shown
        )
        if self._pixels is shown and self._who is who:
            see = self._engine.submit(lambda: self._engine.see(who, image))
            await asyncio.wrap_future(see)
