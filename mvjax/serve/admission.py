"""Who has a slot: a queue in order of arrival, and conversations kept after their socket is lost."""

from __future__ import annotations

import asyncio
import collections
import hmac
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from mvjax.serve import conversation as conversation_lib
from mvjax.serve import engine as engine_lib
from mvjax.serve import limits as limits_lib

NEWS_SECONDS = 4.0  # upstream's client closes after 10 without a message
_CLOSE_SECONDS = 5.0  # for what is ending; a step that is stuck holds up no shutdown

_log = logging.getLogger(__name__)


class Full(Exception):
    """The queue is as long as it may be."""


class Admission:
    """The slots of an engine, as the event loop sees them.

    A conversation has its slot from `enter` to `end`; in between it may be `kept` without a connection.
    """

    def __init__(self, engine: engine_lib.Engine, limits: limits_lib.Limits) -> None:
        self._engine, self._limits = engine, limits
        self._free = engine.size
        self._queue: collections.deque[asyncio.Future[None]] = collections.deque()
        self._talking: dict[str, conversation_lib.Conversation] = {}  # by token
        self._kept: dict[str, asyncio.TimerHandle] = {}  # those whose connection is lost
        self._tasks: set[asyncio.Task] = set()

    @property
    def waiting(self) -> int:
        """Clients in the queue."""
        return len(self._queue)

    @property
    def kept(self) -> int:
        """Conversations without a connection."""
        return len(self._kept)

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self._free

    async def enter(self, who: conversation_lib.Conversation, news: Callable[[int], None]) -> None:
        """Waits for a slot and joins; a cancelled wait leaves nothing behind.

        Args:
          who: a new conversation.
          news: told the position in the queue, from 1, when it changes and every few seconds.

        Raises:
          Full: if too many wait.
        """
        if self._free and not self._queue:
            self._free -= 1
        else:
            await self._wait(news)
        joining = asyncio.wrap_future(self._engine.submit(lambda: self._engine.join(who)))
        try:
            await asyncio.shield(joining)
        except BaseException:
            self.end(who)  # after the join, which may still come
            raise
        who.began = asyncio.get_running_loop().time()
        self._talking[who.token] = who

    def end(self, who: conversation_lib.Conversation) -> None:
        """Ends a conversation and hands its slot to the next in the queue."""
        who.listener = None
        self._talking.pop(who.token, None)
        self._start(self._end(who))

    def keep(self, who: conversation_lib.Conversation) -> None:
        """Keeps a conversation whose connection is lost, for `resume_seconds`."""
        who.listener = None
        loop, seconds = asyncio.get_running_loop(), self._limits.resume_seconds
        self._kept[who.token] = loop.call_later(seconds, self._forget, who.token)

    def resume(self, token: str) -> conversation_lib.Conversation | None:
        """Returns the conversation of a token, without a connection; None if there is none any more.

        The server may not have noticed yet that the old connection is gone: it is told.
        """
        given = token.encode(errors="replace")
        found = [w for w in self._talking.values() if hmac.compare_digest(w.token.encode(), given)]
        if not found:
            return None
        who = found[0]
        if (timer := self._kept.pop(who.token, None)) is not None:
            timer.cancel()
        if who.listener is not None:
            who.listener.replaced()
            who.listener = None
        if who.slot is None:  # it failed meanwhile
            self.end(who)
            return None
        return who

    async def close(self) -> None:
        """Ends what is kept, and waits a while for all that is ending."""
        for token in list(self._kept):
            self._forget(token)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)

    async def _wait(self, news: Callable[[int], None]) -> None:
        if len(self._queue) >= self._limits.waiting:
            raise Full
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        told, due = 0, 0.0
        loop = asyncio.get_running_loop()
        try:
            while not turn.done():
                position = self._queue.index(turn) + 1
                if position != told or loop.time() >= due:
                    news(position)
                    told, due = position, loop.time() + NEWS_SECONDS
                await asyncio.wait([turn], timeout=0.5)
        except asyncio.CancelledError:
            if turn.done():
                self._give()
            else:
                self._queue.remove(turn)
            raise

    def _give(self) -> None:
        """Hands a slot to the next in the queue."""
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._free += 1

    def _forget(self, token: str) -> None:
        self._kept.pop(token).cancel()
        self.end(self._talking[token])

    async def _end(self, who: conversation_lib.Conversation) -> None:
        try:
            await asyncio.wrap_future(self._engine.submit(lambda: self._engine.leave(who)))
        except engine_lib.Stopped:
            pass  # the next in the queue is told so when it joins
        except Exception:
            _log.exception("a conversation did not leave", extra={"session": who.id})
        self._give()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
