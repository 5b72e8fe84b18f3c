"""The `mvjax` command: parses arguments and calls the library; each subcommand imports what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mvjax.commands import data, dialogues, evaluate, export, plan, training

DEBUG = "MVJAX_DEBUG"  # set to 1 to see where an error came from
USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status; a user's error is one message, no traceback."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get(DEBUG) == "1":
            raise
        print(f"mvjax {args.command}: {error}\n({DEBUG}=1 shows where)", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"mvjax {args.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mvjax",
        description="Train vision-speech models of the MoshiVis kind; run them anywhere.",
        epilog="first time: mvjax quickstart --out runs/quickstart",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for group in (training, plan, evaluate, export, data, dialogues):
        group.add(commands)
    return parser
