"""The `mvjax` command: parses arguments and calls the library; each subcommand imports what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mvjax.commands import data, dialogues, evaluate, export, extras, plan, training

DEBUG = "MVJAX_DEBUG"  # set to 1 for the traceback of an error
USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status; a user's error is one message, no traceback."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parser().parse_args(words)
        return args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get(DEBUG) == "1":
            raise
        missing = extras.explain(error) if isinstance(error, ModuleNotFoundError) else None
        text = f" {missing}" if missing else f": {error}\n({DEBUG}=1 shows where)"
        print(f"mvjax {words[0]}{text}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"mvjax {words[0]}: interrupted", file=sys.stderr)
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
