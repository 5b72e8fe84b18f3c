"""The `mvjax` command: parses arguments and calls the library; each subcommand imports what it needs."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import mvjax
from mvjax.commands import (
    arguments,
    bench,
    certify,
    completion,
    data,
    dialogues,
    evaluate,
    export,
    extras,
    health,
    parser,
    plan,
    report,
    serve,
    sweep,
    talk,
    training,
)
from mvjax.stores import places
from mvjax.train import signals

DEBUG = "MVJAX_DEBUG"  # set to 1 for the traceback of an error
USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status; a user's error is one message, no traceback.

    As the command itself, without `argv`, it ends the process at once if it was interrupted: threads may be
    in XLA's compiler, for which Python would wait, and which may crash when it frees what they use.
    """
    status = _status(sys.argv[1:] if argv is None else list(argv))
    if status == INTERRUPTED and argv is None:
        signals.end(status)
    return status


def _status(words: list[str]) -> int:
    name = " ".join(["mvjax", *words[:1]])
    sys.unraisablehook = _interrupt_again
    try:
        try:
            args = _parser().parse_args(words)
            return args.run(args)
        finally:
            _flush()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 0  # as of `mvjax show EXP.py | head`
        if os.environ.get(DEBUG) == "1":
            raise
        missing = extras.explain(error) if isinstance(error, ModuleNotFoundError) else None
        text = f" {missing}" if missing else f": {places.named(error)}\n({DEBUG}=1 shows where)"
        print(f"{name}{text}", file=sys.stderr)
        return getattr(error, "exit_status", USER_ERROR)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _interrupt_again(swallowed: Any) -> None:
    """Repeats a Ctrl-C that came where Python cannot raise it, as in jax's callback of garbage collection."""
    if swallowed.exc_type is KeyboardInterrupt:
        # in a moment, when that place is left
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(swallowed)


def _flush() -> None:
    """Flushes standard output where a failure can still be told; Python shall not try again when it exits."""
    try:
        print(end="", flush=True)
    except BrokenPipeError:
        raise  # what it means follows
    except OSError:
        _write_no_more()
        raise


def _write_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nobody_reads() -> bool:
    """Whether standard output is a closed pipe; then Python shall not try again when it exits."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if closed:
        _write_no_more()
    return closed


def _parser() -> argparse.ArgumentParser:
    whole = parser.Parser(
        prog="mvjax",
        description="Train vision-speech models of the MoshiVis kind; run them anywhere.",
        epilog="first time: mvjax quickstart --out runs/quickstart",
    )
    whole.add_argument("--version", action="version", version=f"mvjax {mvjax.__version__}")
    commands = arguments.subcommands(whole, of="COMMAND")
    first = (training, plan, evaluate, health, sweep, report)
    for group in (*first, export, certify, serve, talk, bench, data, dialogues):
        group.add(commands)
    completion.add(commands, _parser)
    return whole
