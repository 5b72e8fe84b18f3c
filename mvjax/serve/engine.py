"""The thread that steps all conversations together: hear, step, say; the event loop never waits for it.

A tick takes a frame of every conversation that has one ready, so a busy server makes larger batches by
itself. The codec of several conversations works in a few threads; a tick waits for what is heard, and not for
what is said. An error in one conversation ends that one, a panic of the codec too. If the thread itself ends,
every conversation is told, and who asks for something is refused.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from mvjax import types
from mvjax.runtimes import interface, loading
from mvjax.serve import conversation as conversation_lib
from mvjax.serve import metrics as metrics_lib
from mvjax.serve import microphone, protocol, query
from mvjax.serve import voices as voices_lib

_STATUS_EVERY = 12  # frames
_STUCK = 10.0  # seconds in one tick that are no longer healthy
_STOP_SECONDS = 5.0  # for the last tick

_log = logging.getLogger(__name__)


class Stopped(RuntimeError):
    """The engine's thread has ended."""


class _Taken(NamedTuple):
    """A conversation's part of a tick."""

    who: conversation_lib.Conversation
    heard: microphone.Heard
    codes: Any


class Engine:
    """Conversations in the slots of one model.

    Args:
      speaker: the model with its codec.
      slots: conversations at once; each has a codec stream of its own, 0.4 GB with rustymimi.
      metrics: counters of the server.
    """

    def __init__(self, speaker: loading.Speaker, slots: int, metrics: metrics_lib.Metrics) -> None:
        self.speaker, self._metrics = speaker, metrics
        self._slots = speaker.model.slots(slots)
        self._voices = voices_lib.Voices(speaker, slots)
        self._resets: dict[int, futures.Future] = {}
        self._live: list[conversation_lib.Conversation] = []
        self._commands: collections.deque[tuple[futures.Future, Callable[[], Any]]]
        self._commands = collections.deque()
        self._wake, self._stopping, self._ended = threading.Condition(), False, False
        self._tick_began: float | None = None
        self._warm: futures.Future[None] = futures.Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def size(self) -> int:
        """How many conversations there is room for."""
        return self._slots.size

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and gets on."""
        began = self._tick_began
        return self._thread.is_alive() and (began is None or time.monotonic() - began < _STUCK)

    @property
    def died(self) -> bool:
        """Whether the thread has ended though nobody stopped it."""
        return self._ended and not self._stopping

    def start(self) -> None:
        """Starts the thread, and waits until everything is warm."""
        self._thread.start()
        self._warm.result()

    def stop(self) -> None:
        """Ends the thread after its tick; one that is stuck is left behind."""
        self._stopping = True
        self.wake()
        self._thread.join(_STOP_SECONDS)
        self._voices.close()

    def wake(self) -> None:
        """Says that there may be something to do."""
        with self._wake:
            self._wake.notify()

    def submit(self, what: Callable[[], Any]) -> futures.Future:
        """Runs a function between two ticks, in the engine's thread; `Stopped` if that has ended."""
        future: futures.Future = futures.Future()
        with self._wake:
            if not self._ended:
                self._commands.append((future, what))
                self._wake.notify()
                return future
        future.set_exception(Stopped("the engine has stopped"))
        return future

    def join(self, who: conversation_lib.Conversation) -> None:
        """Gives a conversation a slot; by `submit`, as all that follow.

        Raises:
          RuntimeError: if none is free.
        """
        slot = self._slots.join(
            text_sampling=query.text_sampling(who.sampling),
            audio_sampling=query.audio_sampling(who.sampling),
            seed=who.seed,
        )
        who.slot, who.busy = slot, self._resets.pop(slot, None)
        self._wake_after(who.busy)
        self._live.append(who)

    def leave(self, who: conversation_lib.Conversation) -> None:
        """Ends a conversation, if it has not ended; its codec forgets what was said."""
        if who.slot is None:
            return
        slot, who.slot, who.image = who.slot, None, None
        self._live.remove(who)
        if (reset := self._voices.renew(slot, who.busy)) is not None:
            self._resets[slot] = reset
        self._slots.leave(slot)

    def see(self, who: conversation_lib.Conversation, image: Any | None) -> None:
        """Changes what a conversation sees."""
        who.image, who.shown = image, False
        if who.slot is not None:
            self._slots.show(who.slot, None)

    def restart(self, who: conversation_lib.Conversation) -> None:
        """Begins a conversation again, with the image; at its first frame there is nothing to do."""
        if who.slot is None or who.frame == 0:
            return
        self._slots.reset(who.slot)
        self.see(who, who.image)
        who.frame = 0
        who.busy = self._voices.renew(who.slot, who.busy)
        self._wake_after(who.busy)

    def resample(self, who: conversation_lib.Conversation, changes: dict[str, float]) -> None:
        """Changes how a conversation samples; what is not named stays."""
        sampling = who.sampling = {**who.sampling, **changes}
        if who.slot is not None:
            self._slots.resample(
                who.slot,
                text_sampling=query.text_sampling(sampling),
                audio_sampling=query.audio_sampling(sampling),
            )

    def _warm_up(self) -> None:
        self._slots.warm_up()
        silence = np.zeros(types.FRAME_SAMPLES, np.float32)
        for voice in (self._voices[number] for number in range(len(self._voices))):
            slot = self._slots.join()
            frame = None
            for _ in range(2 + max(self.speaker.model.sizes.delays)):
                frame = self._slots.step({slot: interface.Turn(voice.hear(silence))})[slot]
            assert frame is not None
            voice.say(frame)
            voice.reset()
            self._slots.leave(slot)

    def _run(self) -> None:
        try:
            _carry_out(self._warm, self._warm_up)
            while not self._stopping and self._warm.exception() is None:
                with self._wake:
                    self._wake.wait_for(self._has_work)
                for _ in range(len(self._commands)):
                    _carry_out(*self._commands.popleft())
                self._tick_began = time.monotonic()
                try:
                    self._tick()
                except BaseException:
                    _log.exception("a step failed; the conversations in it end")
                    for who in list(self._live):
                        self._fail(who)
                self._tick_began = None
        except BaseException:
            _log.exception("the engine ends")
        finally:
            self._end()
            self.speaker.model.end_thread()

    def _end(self) -> None:
        """Tells everybody that nothing will be answered any more."""
        with self._wake:
            self._ended = True
        for future, _ in self._commands:
            if future.set_running_or_notify_cancel():
                future.set_exception(Stopped("the engine has stopped"))
        for who in self._live:
            who.slot = None
            if who.listener is not None:
                who.listener.failed()

    def _has_work(self) -> bool:
        return self._stopping or bool(self._commands) or any(who.ready for who in self._live)

    def _tick(self) -> None:
        taken = self._hear()
        if not taken:
            return
        start = time.perf_counter()
        turns = {}
        for who, _, codes in taken:
            assert who.slot is not None
            if not who.shown and (image := who.sees_now) is not None:
                self._slots.show(who.slot, image)
                who.shown = True
            turns[who.slot] = interface.Turn(codes)
        frames = self._slots.step(turns)
        step = time.perf_counter() - start
        self._metrics.step(step, len(taken))
        for who, heard, _ in taken:
            assert who.slot is not None
            who.frame += 1
            voice = self._voices[who.slot]
            say = _Say(who, voice, who.listener, frames[who.slot], heard.at, step)
            who.busy = self._voices.after(who.busy, lambda say=say: self._say(say))
            self._wake_after(who.busy)

    def _hear(self) -> list[_Taken]:
        """Takes a frame of each conversation that has one, and encodes it."""
        taken, out = [], []
        for who in list(self._live):
            try:
                if who.ready and (heard := who.take()) is not None:
                    assert who.slot is not None
                    taken.append((who, heard, self._voices.hear(who.slot, heard.pcm)))
            except Exception:
                _log.exception("a frame failed", extra={"session": who.id})
                self._fail(who)
        for who, heard, codes in taken:
            try:
                out.append(_Taken(who, heard, codes.result()))
            except BaseException:  # as Rust's panics are
                _log.exception("hearing failed", extra={"session": who.id})
                self._fail(who)
        return out

    def _wake_after(self, future: futures.Future | None) -> None:
        if future is not None:
            future.add_done_callback(lambda _: self.wake())

    def _say(self, say: _Say) -> None:
        try:
            messages = self._messages(say)
        except BaseException:  # as Rust's panics are
            _log.exception("saying failed", extra={"session": say.who.id})
            self.submit(lambda: self._fail(say.who))
            return
        if say.listener is not None:
            say.listener.deliver(messages)

    def _messages(self, say: _Say) -> Sequence[bytes]:
        said, who = say.voice.say(say.frame), say.who
        listener = say.listener
        messages = []
        if listener is not None:
            messages.append(protocol.audio(listener.transport.send(said.pcm)))
            if said.text and listener.wants_status:
                messages.append(protocol.metadata(type="gate", value=round(say.frame.gate, 4)))
            if said.text:
                messages.append(protocol.colored_text(said.text, say.frame.gate))
        latency = time.monotonic() - say.heard_at
        self._metrics.frame(latency, missed=who.meter.add(latency))
        if listener is not None and listener.wants_status and who.meter.frames % _STATUS_EVERY == 0:
            waiting = len(who.microphone)
            status = {
                **who.meter.status(),
                "step_ms": round(1000 * say.step, 1),
                "behind_ms": round(1000 * types.FRAME_SECONDS * waiting),
                "skipped": who.microphone.skipped,
            }
            messages.append(protocol.metadata(type="status", **status))
        return messages

    def _fail(self, who: conversation_lib.Conversation) -> None:
        if who.listener is not None:
            who.listener.failed()
        self.leave(who)


def _carry_out(future: futures.Future, what: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(what())
    except Exception as error:
        future.set_exception(error)
    except BaseException as error:
        future.set_exception(RuntimeError(repr(error)))


class _Say(NamedTuple):
    """What a conversation says in a frame, to whom, and the times that it is measured by."""

    who: conversation_lib.Conversation
    voice: Any
    listener: conversation_lib.Listener | None
    frame: interface.Frame
    heard_at: float  # on the monotonic clock
    step: float  # seconds
