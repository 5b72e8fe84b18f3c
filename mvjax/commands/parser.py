"""The argument parser of every command: says what a misspelled command, choice or option meant."""

from __future__ import annotations

import argparse
from pathlib import Path

from mvjax import files, messages


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors end with "did you mean"; its subcommands' parsers are such, too.

    An argument of `type=Path` is a path on this machine, as `files.on_disk`.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register("type", Path, _local)

    def parse_known_args(self, args=None, namespace=None):
        """Parses; an option that is unknown is named by the subcommand that does not know it."""
        self._words = list(args or ())
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unexpected {' '.join(unknown)}")
        return known, unknown

    def error(self, message):
        """Exits with usage and message; says which options were misspelled, whatever the message is about."""
        options = [text for action in self._actions for text in action.option_strings]
        hints = []
        for word in (word.partition("=")[0] for word in self._words):
            # an option may be abbreviated
            if word.startswith("--") and not any(text.startswith(word) for text in options):
                hints.append(f"{word}: {messages.did_you_mean(word, options)}")
        super().error("; ".join([message, *(hint for hint in hints if hint.endswith("?"))]))

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            meant = messages.did_you_mean(str(value), action.choices)
            raise argparse.ArgumentError(action, f"unknown {value!r}; {meant}")


def given(text: str) -> str:
    """Returns a path as it was typed; ValueError for an empty one, which would be the current folder."""
    if not text:
        raise ValueError("expected a path, got an empty one; an unset variable?")
    return text


def _local(text: str) -> Path:
    try:
        return files.on_disk(given(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
