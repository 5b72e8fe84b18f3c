"""The server: its routes, its life from warm-up to shutdown, and what it tells of itself."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from concurrent import futures
from pathlib import Path

import aiohttp
from aiohttp import web

import mvjax
from mvjax.runtimes import loading
from mvjax.serve import access as access_lib
from mvjax.serve import admission as admission_lib
from mvjax.serve import asking, connection, decoder, pages, protocol, query
from mvjax.serve import engine as engine_lib
from mvjax.serve import limits as limits_lib
from mvjax.serve import metrics as metrics_lib

_HEARTBEAT = 10.0  # seconds between pings that find out who is gone
ENGINE = web.AppKey("engine", engine_lib.Engine)
_CONNECTIONS = web.AppKey("connections", set[asyncio.Task])
_CLOSE_SECONDS = 5.0  # for all clients to be told

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a server is started with.

    Attributes:
      access: who may connect.
      slots: conversations at once.
      limits: of a client.
      xa_start: frames of a conversation before an image is seen, where a client does not say.
      static: upstream's built client, in place of our page.
      runtime, dtype: for those who ask.
    """

    access: access_lib.Access
    slots: int = 1
    limits: limits_lib.Limits = dataclasses.field(default_factory=limits_lib.Limits)
    xa_start: int = 0
    static: Path | None = None
    runtime: str = ""
    dtype: str = ""


def make(speaker: loading.Speaker, options: Options) -> web.Application:
    """Returns the application; the model is warm before it answers."""
    metrics = metrics_lib.Metrics()
    engine = engine_lib.Engine(speaker, options.slots, metrics)
    server = connection.Server(
        engine=engine,
        admission=admission_lib.Admission(engine, options.limits),
        limits=options.limits,
        metrics=metrics,
        decoder=decoder.Decoder(),
        images=futures.ThreadPoolExecutor(1, "images"),
        speakers=futures.ThreadPoolExecutor(2, "questions"),
        xa_start=options.xa_start,
        about=_about(speaker, options),
    )
    _watch(server)
    if speaker.verdict:
        _log.info("certificate", extra={"model": speaker.name, "verdict": speaker.verdict})
    app = web.Application()
    app[ENGINE], app[_CONNECTIONS] = engine, set()

    async def life(app: web.Application):
        await server.decoder.start()
        await asyncio.get_running_loop().run_in_executor(None, engine.start)
        yield
        await server.admission.close()
        await server.decoder.close()
        engine.stop()
        for executor in (server.images, server.speakers):
            executor.shutdown(wait=False, cancel_futures=True)

    async def hang_up(app: web.Application) -> None:
        for task in app[_CONNECTIONS]:
            task.cancel()
        if app[_CONNECTIONS]:
            await asyncio.wait(app[_CONNECTIONS], timeout=_CLOSE_SECONDS)

    app.cleanup_ctx.append(life)
    app.on_shutdown.append(hang_up)
    _add_routes(app, server, options)
    return app


def _add_routes(app: web.Application, server: connection.Server, options: Options) -> None:
    access = options.access

    async def chat(request: web.Request) -> web.StreamResponse:
        access.check(request)
        socket = web.WebSocketResponse(
            max_msg_size=options.limits.message_bytes + 1,
            heartbeat=_HEARTBEAT,
            timeout=2.0,
            compress=False,  # a bomb needs compression
        )
        try:
            await socket.prepare(request)
        except OSError:  # gone already
            server.metrics.ended("lost")
            return socket
        try:
            asked = query.parse(request.query, server.engine.speaker.talk)
        except limits_lib.BrokenLimit as error:
            server.metrics.ended("broken")
            with contextlib.suppress(OSError):
                await socket.send_bytes(protocol.error(str(error)))
                await socket.close(code=aiohttp.WSCloseCode.POLICY_VIOLATION)
            return socket
        if len(app[_CONNECTIONS]) >= _most(options) and not asked.resume:
            server.metrics.ended("full")
            with contextlib.suppress(OSError):
                await socket.send_bytes(protocol.error("too many clients; try again later"))
                await socket.close(code=aiohttp.WSCloseCode.TRY_AGAIN_LATER)
            return socket
        task = asyncio.current_task()
        assert task is not None
        app[_CONNECTIONS].add(task)
        try:
            await connection.Connection(server, socket, asked).run()
        finally:
            app[_CONNECTIONS].discard(task)
        return socket

    async def health(request: web.Request) -> web.StreamResponse:
        fine, admission = server.engine.healthy, server.admission
        counts = {"slots": server.engine.size, "free": admission.free, "waiting": admission.waiting}
        status = {"status": "ok" if fine else "failing", "version": mvjax.__version__, **counts}
        return web.json_response(status, status=200 if fine else 503)

    async def metrics(request: web.Request) -> web.StreamResponse:
        access.check(request)
        headers = {"Content-Type": metrics_lib.CONTENT_TYPE}
        return web.Response(body=server.metrics.text(), headers=headers)

    app.router.add_get("/api/chat", chat)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    pages.add_routes(app, access, static=options.static)


def _most(options: Options) -> int:
    """Connections at once, those that have not chosen an image yet included."""
    return options.slots + 2 * options.limits.waiting


def _watch(server: connection.Server) -> None:
    metrics, admission, engine = server.metrics, server.admission, server.engine
    metrics.watch("slots", "conversations at once", lambda: engine.size)
    metrics.watch("slots_free", "slots that nobody has", lambda: admission.free)
    metrics.watch("clients_waiting", "clients in the queue", lambda: admission.waiting)
    metrics.watch(
        "conversations_kept", "conversations whose socket is lost", lambda: admission.kept
    )


def _about(speaker: loading.Speaker, options: Options) -> dict:
    limits = options.limits
    return {
        "model": speaker.name,
        "slots": options.slots,
        "image_size": speaker.model.sizes.image_size,
        "runtime": options.runtime,
        "dtype": options.dtype,
        "version": mvjax.__version__,
        "limits": {
            "image_bytes": limits.message_bytes,
            "image_pixels": limits.image_pixels,
            "minutes": limits.minutes,
            "queued_frames": limits.queued_frames,
            "resume_seconds": limits.resume_seconds,
            "typed_characters": asking.MAX_CHARACTERS,
            "sampling": {name: known[1:3] for name, known in query.SAMPLING.items()},
        },
    }
