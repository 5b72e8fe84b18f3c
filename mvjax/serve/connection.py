"""One WebSocket of a client: image, queue, handshake, then audio both ways until either side ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from mvjax import types
from mvjax.serve import admission as admission_lib
from mvjax.serve import conversation as conversation_lib
from mvjax.serve import decoder as decoder_lib
from mvjax.serve import engine as engine_lib
from mvjax.serve import limits as limits_lib
from mvjax.serve import metrics as metrics_lib
from mvjax.serve import microphone, outbox, protocol, query, questions, sight, transport

_PING_SECONDS = 4.0  # upstream's client closes after 10 without a message
_LOOK_SECONDS = 0.5
_CHOICE_SECONDS = 1.0  # for our protocol's first message, an image or the wish for none
# How a connection ends by its close code; the others (and none) mean that the client is gone.
_ENDS: dict[int | None, str] = {
    aiohttp.WSCloseCode.OK: "done",
    aiohttp.WSCloseCode.PROTOCOL_ERROR: "broken",
    aiohttp.WSCloseCode.INVALID_TEXT: "broken",
    aiohttp.WSCloseCode.MESSAGE_TOO_BIG: "broken",
}

_log = logging.getLogger(__name__)


class Server(NamedTuple):
    """What all connections share."""

    engine: engine_lib.Engine
    admission: admission_lib.Admission
    limits: limits_lib.Limits
    metrics: metrics_lib.Metrics
    decoder: decoder_lib.Decoder  # of image files
    images: futures.Executor  # encodes them, one after the other
    speakers: futures.Executor  # of typed questions
    xa_start: int  # where a client says nothing
    about: dict[str, Any]  # for our page


class _Over(Exception):
    """The connection ends: the WebSocket's close code, a text for the client, a word for logs and metrics."""

    def __init__(self, end: str, text: str, *, code: int = aiohttp.WSCloseCode.OK) -> None:
        super().__init__(text)
        self.end, self.text, self.code = end, text, code


class Connection:
    """As `conversation.Listener`."""

    def __init__(self, server: Server, socket: web.WebSocketResponse, asked: query.Query) -> None:
        self._server, self._socket, self._asked = server, socket, asked
        limits = server.limits
        self._out = outbox.Outbox(socket, limit=limits.unsent_frames, seconds=limits.send_seconds)
        self.transport = transport.make(asked.audio, limits)
        self.wants_status = asked.audio == "pcm"
        self._who: conversation_lib.Conversation | None = None
        self._talking = False  # after the handshake
        self._failed = self._replaced = False
        self._stir = asyncio.Event()  # one of them is new
        self._loop = asyncio.get_running_loop()
        self._sight = sight.Sight(
            server.engine, server.decoder, server.images, limits, asked, self._complain
        )
        voice = server.engine.speaker.talk.voice
        self._questions = questions.Questions(
            server.speakers, voice, limits.typed_frames, self._complain
        )
        self._messages = limits_lib.Bucket(*limits.messages)
        self._controls = limits_lib.Bucket(*limits.controls)
        self._audio = limits_lib.Bucket(*limits.audio)
        self._heard_seconds = 0.0
        self._last_heard = self._loop.time()

    def deliver(self, messages: Sequence[bytes]) -> None:
        """As `conversation.Listener.deliver`."""
        self._out.put(messages)

    def failed(self) -> None:
        """As `conversation.Listener.failed`."""
        self._failed = True
        self._loop.call_soon_threadsafe(self._stir.set)

    def replaced(self) -> None:
        """As `conversation.Listener.replaced`."""
        self._who = None  # no longer ours to end
        self._questions.drop()
        self._replaced = True
        self._stir.set()

    async def run(self) -> None:
        """Serves the client until the end, and ends or keeps the conversation."""
        parts = [self._listen(), self._talk(), self._out.run()]
        tasks = [self._loop.create_task(part) for part in parts]
        lost = _Over("lost", "")
        over = lost
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            over = self._verdict(next(task for task in tasks if task.done()).exception()) or lost
        except asyncio.CancelledError:
            over = _Over("shutdown", "the server stops", code=aiohttp.WSCloseCode.GOING_AWAY)
        finally:
            self._sight.close()
            self._questions.drop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._release(over)
            await self._close(over)

    def _verdict(self, error: BaseException | None) -> _Over | None:
        """Why the first of the tasks ended; None: the socket is gone."""
        if isinstance(error, _Over):
            return error
        if isinstance(error, limits_lib.BrokenLimit):
            return _Over("broken", str(error), code=aiohttp.WSCloseCode.POLICY_VIOLATION)
        if error is None and (end := _ENDS.get(self._socket.close_code)):
            return _Over(end, "")
        if error is None or isinstance(error, (OSError, TimeoutError)):
            return None
        _log.error("a connection failed", exc_info=error, extra=self._extra())
        return _Over("failed", "the server made an error", code=aiohttp.WSCloseCode.INTERNAL_ERROR)

    def _release(self, over: _Over) -> None:
        who, server = self._who, self._server
        server.metrics.ended(over.end)
        extra = {**self._extra(), "end": over.end, "text": over.text}
        if who is not None:
            extra |= {"frames": who.meter.frames, "missed": who.meter.missed}
            extra |= {"skipped": who.microphone.skipped, "unsent": self._out.dropped}
            long_enough = who.meter.frames >= server.limits.resumable_frames
            if over.end == "lost" and self.wants_status and long_enough:
                server.admission.keep(who)
            else:
                server.admission.end(who)
                server.metrics.skipped(who.microphone.skipped)
        _log.info("connection ends", extra=extra)

    async def _close(self, over: _Over) -> None:
        try:
            async with asyncio.timeout(2):
                if over.text and not self._socket.closed:
                    await self._socket.send_bytes(protocol.error(over.text))
                await self._socket.close(code=over.code, message=protocol.reason(over.text))
        except (OSError, TimeoutError, RuntimeError):
            pass  # nobody is there to hear it

    async def _listen(self) -> None:
        """Takes messages until the socket is closed."""
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                if message.type is aiohttp.WSMsgType.ERROR:
                    return
                raise limits_lib.BrokenLimit("expected binary messages, got text")
            now = self._last_heard = self._loop.time()
            if not self._messages.take(1.0, now):
                rate, burst = self._server.limits.messages
                raise limits_lib.BrokenLimit(
                    f"at most {rate:g} messages a second ({burst:g} at once)"
                )
            self._take(protocol.parse(message.data, self._server.limits), now)

    def _take(self, message: protocol.Message, now: float) -> None:
        if isinstance(message, protocol.Audio):
            self._hear(message.data, now)
        elif isinstance(message, protocol.Image):
            self._sight.show(message.data, now)
        elif message is protocol.Simple.NO_IMAGE:
            self._sight.hide()
        elif isinstance(message, protocol.Rating):
            self._server.metrics.rated(message.stars)
        elif self._who is not None and self._talking:
            self._ask(message, self._who, now)

    def _ask(
        self, message: protocol.Message, who: conversation_lib.Conversation, now: float
    ) -> None:
        """Takes what only a running conversation can be asked."""
        engine = self._server.engine
        if isinstance(message, protocol.Typed):
            self._questions.ask(message.text, who)
        elif isinstance(message, protocol.Settings):
            changes = query.changed(message.values)
            engine.submit(lambda: engine.resample(who, changes))
        elif isinstance(message, protocol.Played):
            self._server.metrics.played(max(self._heard_seconds - message.mic_time, 0.0))
        elif message in (protocol.Simple.STOP, protocol.Simple.RESTART):
            if not self._controls.take(1.0, now):
                rate, burst = self._server.limits.controls
                self._complain(f"{message.value}: at most {rate:g} a second ({burst:g} at once)")
                return
            self._questions.drop()
            who.microphone.keep_newest()
            who.typed.clear()
            self._out.drop_audio()
            if message is protocol.Simple.RESTART:
                engine.submit(lambda: engine.restart(who))

    def _hear(self, data: bytes, now: float) -> None:
        pcm = self.transport.receive(data)
        seconds = len(pcm) / types.SAMPLE_RATE
        if not self._audio.take(seconds, now):
            rate, burst = self._server.limits.audio
            raise limits_lib.BrokenLimit(
                f"audio: at most {rate:g} seconds of it a second ({burst:g} at once); send it in real time"
            )
        if self._who is not None and self._talking and len(pcm):
            self._heard_seconds += seconds
            if self._who.microphone.put(pcm, time.monotonic()):
                self._server.engine.wake()

    async def _talk(self) -> None:
        """Begins the conversation and watches over it; ends by `_Over`."""
        who = await (self._resumed() if self._asked.resume else self._begun())
        who.listener = self
        self._talking = True
        self._out.put_here([protocol.HANDSHAKE])
        _log.info("conversation begins", extra=self._extra())
        limits, steps = self._server.limits, self._asked.max_steps
        while not self._stir.is_set():
            now = self._loop.time()
            minutes = (now - who.began) / 60
            if minutes > limits.minutes or who.meter.frames >= steps:
                raise _Over("done", f"the conversation is over after {minutes:.1f} minutes")
            if now - self._last_heard > limits.silent_seconds:
                raise _Over("silent", f"nothing was sent for {limits.silent_seconds:g} seconds")
            if now - self._out.last_sent > _PING_SECONDS:
                self._out.put_here([protocol.PING])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._stir.wait()
        if self._replaced:
            raise _Over("replaced", "the conversation goes on in another connection")
        raise _Over("failed", "the server made an error", code=aiohttp.WSCloseCode.INTERNAL_ERROR)

    async def _begun(self) -> conversation_lib.Conversation:
        """Waits for upstream's image, for a slot, and until the image is seen."""
        asked, server = self._asked, self._server
        await self._await_image()
        who = conversation_lib.Conversation(
            sampling=asked.sampling,
            seed=asked.drawn_seed(),
            xa_start=server.xa_start if asked.xa_start is None else asked.xa_start,
            microphone=microphone.Microphone(server.limits.queued_frames),
        )
        try:
            await server.admission.enter(who, self._tell_position)
        except admission_lib.Full:
            raise _Over(
                "full",
                "the queue is full; try again later",
                code=aiohttp.WSCloseCode.TRY_AGAIN_LATER,
            ) from None
        self._who = who
        await self._sight.begin(who)
        self._hello(who)
        return who

    async def _await_image(self) -> None:
        """Waits until an image, or none, is chosen; our protocol may go without either."""
        needed = self._asked.audio == "opus"
        seconds = self._server.limits.first_image_seconds if needed else _CHOICE_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await self._sight.decided.wait()
        except TimeoutError:
            if needed:
                raise _Over("silent", f"no image came within {seconds:g} seconds") from None

    async def _resumed(self) -> conversation_lib.Conversation:
        assert self._asked.resume is not None
        who = self._server.admission.resume(self._asked.resume)
        if who is None:
            raise _Over("done", "there is no conversation to resume; connect without `resume`")
        self._who = who
        self._sight.follow(who)
        self._hello(who)
        return who

    def _hello(self, who: conversation_lib.Conversation) -> None:
        if self.wants_status:
            about = {**self._server.about, "resume": who.token, "sampling": who.sampling}
            self._out.put_here([protocol.metadata(type="hello", **about)])

    def _tell_position(self, position: int) -> None:
        news = {"position": position, "slots": self._server.engine.size}
        self._out.put_here([protocol.metadata(type="queue", **news)])

    def _complain(self, text: str) -> None:
        self._out.put_here([protocol.error(text)])

    def _extra(self) -> dict[str, Any]:
        return {"session": self._who.id if self._who else None, "audio": self._asked.audio}
