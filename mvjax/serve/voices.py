"""The codec streams of all slots: each does one thing after the other, several at once in a few threads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np

from mvjax.runtimes import loading
from mvjax.runtimes import voice as voice_lib

_log = logging.getLogger(__name__)


class Voices:
    """A voice for each slot; called by the engine's thread.

    Args:
      speaker: makes them.
      slots: how many.
    """

    def __init__(self, speaker: loading.Speaker, slots: int) -> None:
        self._speaker = speaker
        # made here and kept: rustymimi holds up all threads of Python for half a second when it loads
        self._voices = [speaker.voice() for _ in range(slots)]
        self._used: set[int] = set()  # slots whose voice is past its first frame
        self._pool = futures.ThreadPoolExecutor(min(slots + 1, 8), "codec")

    def __getitem__(self, slot: int) -> voice_lib.Voice:
        return self._voices[slot]

    def __len__(self) -> int:
        return len(self._voices)

    def hear(self, slot: int, pcm: np.ndarray) -> futures.Future:
        """Encodes a frame; nothing else may be going on with the voice."""
        self._used.add(slot)
        return self._pool.submit(self._voices[slot].hear, pcm)

    def renew(self, slot: int, before: futures.Future | None) -> futures.Future | None:
        """Takes a voice to its first frame, after what is done with it now; one that is there stays."""
        if slot not in self._used:
            return before
        self._used.discard(slot)
        return self.after(before, lambda: self._renew(slot))

    def after(self, before: futures.Future | None, what: Callable[[], Any]) -> futures.Future:
        """Runs something when something else has ended, however it did; until then it holds no thread."""
        future: futures.Future = futures.Future()

        def run() -> None:
            try:
                future.set_result(what())
            except BaseException as error:
                future.set_exception(error)

        def begin(_: Any) -> None:
            try:
                self._pool.submit(run)
            except RuntimeError as error:  # the pool is closed
                future.set_exception(error)

        if before is None:
            begin(None)
        else:
            before.add_done_callback(begin)
        return future

    def close(self) -> None:
        """Gives up what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _renew(self, slot: int) -> None:
        """Resets a voice; one that an error has broken for good is made anew."""
        try:
            self._voices[slot].reset()
        except BaseException:
            _log.exception("a codec stream is broken; another takes its place")
            self._voices[slot] = self._speaker.voice()
