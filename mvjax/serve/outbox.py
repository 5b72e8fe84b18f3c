"""Messages on their way to one client: the oldest audio is dropped when too much waits for a slow socket."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence

from aiohttp import web

from mvjax.serve import protocol

_MESSAGES = 1000  # of all kinds that may wait; audio is limited far below


class Outbox:
    """Filled by any thread, emptied by `run` in the event loop.

    Args:
      socket: of the client.
      limit: audio messages that may wait.
      seconds: for a message to leave.
    """

    def __init__(self, socket: web.WebSocketResponse, *, limit: int, seconds: float) -> None:
        self._socket, self._limit, self._seconds = socket, limit, seconds
        self._messages: collections.deque[bytes] = collections.deque(maxlen=_MESSAGES)
        self._filled, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._first: bytes | None = (
            None  # audio; it holds the stream's headers, and is never dropped
        )
        self.dropped = 0  # audio messages
        self.last_sent = self._loop.time()

    def put(self, messages: Sequence[bytes]) -> None:
        """Takes messages, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.put_here, messages)

    def put_here(self, messages: Sequence[bytes]) -> None:
        """Takes messages, from the event loop."""
        self._messages.extend(messages)
        if self._first is None:
            self._first = next((m for m in messages if m[0] == protocol.Kind.AUDIO), None)
        audio = [m for m in self._messages if self._droppable(m)]
        for message in audio[: max(len(audio) - self._limit, 0)]:
            self._messages.remove(message)
            self.dropped += 1
        self._filled.set()

    def drop_audio(self) -> None:
        """Drops all audio that waits."""
        kept = [m for m in self._messages if not self._droppable(m)]
        self.dropped += len(self._messages) - len(kept)
        self._messages.clear()
        self._messages.extend(kept)

    def _droppable(self, message: bytes) -> bool:
        return message[0] == protocol.Kind.AUDIO and message is not self._first

    async def run(self) -> None:
        """Sends until the socket is closed.

        Raises:
          TimeoutError: if the client does not read.
          ConnectionError: if it is gone.
        """
        while True:
            await self._filled.wait()
            await self.flush()

    async def flush(self) -> None:
        """Sends what waits; errors as `run`."""
        self._filled.clear()
        while self._messages:
            async with asyncio.timeout(self._seconds):
                await self._socket.send_bytes(self._messages.popleft())
            self.last_sent = self._loop.time()
