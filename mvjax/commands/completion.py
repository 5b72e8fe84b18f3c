"""`mvjax completion`: a shell's completion script, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from mvjax.commands import arguments

SHELLS = ("bash", "zsh", "tcsh")


def add(commands, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Adds the subcommand; `whole` returns the parser of all commands."""
    arg = arguments.command(
        commands, "completion", lambda args: completion(args, whole()),
        "print what makes a shell complete commands, options and files",
        "mvjax completion bash")  # fmt: skip
    arg("shell", choices=SHELLS, metavar="SHELL",
        help='bash, zsh or tcsh; in ~/.bashrc: eval "$(mvjax completion bash)"')  # fmt: skip


def completion(args: argparse.Namespace, whole: argparse.ArgumentParser) -> int:
    """Prints the script."""
    import shtab

    _complete_files(whole, shtab.FILE)
    print(shtab.complete(whole, args.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, how) -> None:
    """Lets every argument that is a path complete to files, in subcommands as well."""
    for action in parser._actions:
        if action.type is Path:
            action.complete = how  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _complete_files(child, how)
