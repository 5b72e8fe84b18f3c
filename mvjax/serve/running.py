"""Runs the server until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from mvjax.serve import app as app_lib

_IDLE_SECONDS = 30.0  # of a connection that asks for nothing
_SHUTDOWN_SECONDS = 5.0
_LOOK_SECONDS = 1.0  # whether the engine lives
# How long the engine may wait for a busy event loop each time it comes back to Python, which is hundreds of
# times in a frame; Python's own 5 ms would let a flood of messages stop all conversations.
_SWITCH_SECONDS = 0.0005

_log = logging.getLogger(__name__)


def tls(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Returns what https needs.

    Raises:
      ValueError: if the files are no certificate and its key.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise ValueError(
            f"{certificate}: expected a certificate and its key (PEM): {error}"
        ) from error
    return context


def listen(host: str, port: int) -> socket.socket:
    """Takes an address; nobody is answered before `run`.

    Raises:
      ValueError: if it is taken, or none of this machine's.
    """
    try:
        return socket.create_server((host, port), family=_family(host), backlog=128)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: {os.strerror(error.errno or 0)}; choose another, --port 0"
            " takes any that is free"
        ) from error


def run(app: web.Application, taken: socket.socket, certificate: ssl.SSLContext | None) -> int:
    """Serves until SIGINT or SIGTERM; then every client is told, and sockets are closed.

    Returns:
      The exit status: 1 if the engine has ended by an error, so that a supervisor starts the server again.
    """
    _raise_file_limit()
    sys.setswitchinterval(_SWITCH_SECONDS)
    scheme = "http" if certificate is None else "https"
    host, port = taken.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host

    async def tell(app: web.Application) -> None:
        _log.info("warm; serving at %s://%s:%d/", scheme, name, port)

    app.on_startup.append(tell)
    app.cleanup_ctx.append(_watch)
    web.run_app(
        app,
        sock=taken,
        ssl_context=certificate,
        access_log=None,
        print=None,
        keepalive_timeout=_IDLE_SECONDS,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    return int(app[app_lib.ENGINE].died)


async def _watch(app: web.Application) -> AsyncIterator[None]:
    """Ends the server when the engine has ended."""

    async def look() -> None:
        while not app[app_lib.ENGINE].died:
            await asyncio.sleep(_LOOK_SECONDS)
        raise web.GracefulExit

    task = asyncio.get_running_loop().create_task(look())
    yield
    task.cancel()


def _family(host: str) -> socket.AddressFamily:
    try:
        return socket.AddressFamily(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0])
    except socket.gaierror as error:
        raise ValueError(
            f"--host {host}: {error.strerror}; expected an address of this machine"
        ) from error


def _raise_file_limit() -> None:
    """Every socket is an open file, of which some systems allow 256 unless asked for more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
