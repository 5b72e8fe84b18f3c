"""`mvjax serve`: conversations with a model in the browser."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from mvjax.commands import arguments, extras, speakers

TOKEN = "MVJAX_TOKEN"  # environment variable: a secret on a command line is seen by others
_PORT = 8998  # upstream's


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "serve", serve, "talk to a model in the browser",
        "mvjax serve runs/quickstart/run")  # fmt: skip
    speakers.add(arg)
    arg("--host", default="127.0.0.1",
        help="address to listen at; 0.0.0.0: all, where browsers need --tls-cert (%(default)s)")  # fmt: skip
    arg("--port", type=_port, default=_PORT, help="0: any that is free (%(default)s)")
    arg("--slots", type=_positive, default=1, metavar="N",
        help="conversations at once, in one batch; others wait (%(default)s)")  # fmt: skip
    arg("--token", metavar="SECRET",
        help=f"ask every client for it, as ?token=SECRET; also read from ${TOKEN}")  # fmt: skip
    arg("--tls-cert", type=Path, metavar="FILE", help="serve https with this certificate (PEM)")
    arg("--tls-key", type=Path, metavar="FILE", help="its private key, if that is another file")
    arg("--origin", action="append", default=[], metavar="URL",
        help="a page elsewhere, or a proxy's address, that may connect; may be repeated")  # fmt: skip
    arg("--max-minutes", type=_minutes, default=60.0, metavar="M",
        help="how long a conversation may last (%(default)g)")  # fmt: skip
    arg("--xa-start", type=_frames, default=0, metavar="FRAMES",
        help="frames before an image is seen, where a client does not say (%(default)s)")  # fmt: skip
    arg("--static", type=Path, metavar="DIST",
        help="serve upstream's built web client in place of our page")  # fmt: skip
    arg("--log-json", action="store_true", help="log JSON, an object a line")


def serve(args: argparse.Namespace) -> int:
    """Loads the folder, and serves until SIGINT or SIGTERM."""
    extras.require("aiohttp", "sphn", "prometheus_client")
    from mvjax.serve import access, app, limits, logs, running

    if args.tls_key and not args.tls_cert:
        raise ValueError("--tls-key: expected --tls-cert beside it, got none")
    origins = tuple(_origin(url) for url in args.origin)
    rules = access.Access(args.token or os.environ.get(TOKEN) or None, origins, args.host)
    logs.set_up(as_json=args.log_json)
    taken = running.listen(args.host, args.port)
    opened = speakers.open_speaker(args, minutes=args.max_minutes + 1)
    options = app.Options(
        access=rules,
        slots=args.slots,
        limits=limits.Limits(minutes=args.max_minutes),
        xa_start=args.xa_start,
        static=args.static,
        runtime=opened.runtime,
        dtype=opened.dtype,
    )
    certificate = running.tls(args.tls_cert, args.tls_key) if args.tls_cert else None
    return running.run(app.make(opened.speaker, options), taken, certificate)


def _positive(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 1024, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return int(text)


def _frames(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 10000, got {text!r}")
    return int(text)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 24 * 60:
        raise argparse.ArgumentTypeError(f"expected minutes, at most 1440, got {text!r}")
    return value


def _origin(url: str) -> str:
    if url != "*" and not re.fullmatch(r"https?://[^/\s]+", url):
        raise ValueError(f"--origin: expected https://HOST[:PORT] or '*', got {url!r}")
    return url
