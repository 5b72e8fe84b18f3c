"""Runs the server until a signal ends it."""

from __future__ import annotations

import contextlib
import logging
import resource
import ssl
import sys
from pathlib import Path

from aiohttp import web

_IDLE_SECONDS = 30.0  # of a connection that asks for nothing
_SHUTDOWN_SECONDS = 5.0
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


def run(app: web.Application, host: str, port: int, certificate: ssl.SSLContext | None) -> None:
    """Serves until SIGINT or SIGTERM; then every client is told, and sockets are closed."""
    _raise_file_limit()
    sys.setswitchinterval(_SWITCH_SECONDS)
    scheme = "http" if certificate is None else "https"

    async def tell(app: web.Application) -> None:
        _log.info("warm; serving at %s://%s:%d/", scheme, host, port)

    app.on_startup.append(tell)
    web.run_app(
        app,
        host=host,
        port=port,
        ssl_context=certificate,
        access_log=None,
        print=None,
        keepalive_timeout=_IDLE_SECONDS,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )


def _raise_file_limit() -> None:
    """Every socket is an open file, of which some systems allow 256 unless asked for more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
