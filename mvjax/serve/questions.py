"""The typed questions of one connection: spoken one at a time, off the event loop, dropped by Stop."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent import futures

from mvjax.serve import asking
from mvjax.serve import conversation as conversation_lib

_log = logging.getLogger(__name__)


class Questions:
    """What a client types.

    Args:
      executor: speaks the questions of all clients.
      voice: that they are spoken with.
      limit: frames of questions that may wait to be heard when another is taken.
      complain: told why a question is not taken, which changes nothing else.
    """

    def __init__(
        self, executor: futures.Executor, voice: str, limit: int, complain: Callable[[str], None]
    ) -> None:
        self._executor, self._voice, self._limit = executor, voice, limit
        self._complain = complain
        self._job: asyncio.Future | None = None  # the question that is being spoken

    def ask(self, text: str, who: conversation_lib.Conversation) -> None:
        """Takes a question for a conversation; frames that wait are at most the limit and one question."""
        if self._job is not None or len(who.typed) > self._limit:
            self._complain("text: the question typed before is still being asked; ask again later")
            return
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, asking.spoken, text, self._voice
        )
        self._job = work
        work.add_done_callback(functools.partial(self._spoken, who))

    def drop(self) -> None:
        """Forgets the question that is being spoken."""
        job, self._job = self._job, None
        if job is not None:
            job.cancel()

    def _spoken(self, who: conversation_lib.Conversation, done: asyncio.Future) -> None:
        if done is not self._job:
            return  # dropped meanwhile
        self._job = None
        error = done.exception()
        if error is None and who.slot is not None:
            who.typed.extend(done.result())
        elif isinstance(error, (ValueError, ModuleNotFoundError)):
            self._complain(str(error))
        elif error is not None:
            _log.error("a question failed", exc_info=error, extra={"session": who.id})
            self._complain("text: the server made an error; the question was not asked")
