"""Parts of messages: lists that are cut and keep their count, and what a misspelled name meant."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

SHOWN_LINES = 20
SHOWN_NAMES = 40


def lines(items: Iterable[object], *, shown: int = SHOWN_LINES) -> str:
    """Returns the items on lines of their own, indented; past `shown`, the last line says how many more."""
    return "".join(f"\n  {item}" for item in _cut(items, shown))


def names(items: Iterable[object], *, shown: int = SHOWN_NAMES, between: str = ", ") -> str:
    """Returns the items with commas between them; past `shown`, the last says how many more."""
    return between.join(map(str, _cut(items, shown))) or "nothing"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns the number with its noun: "1 step", "3 steps"; `many` where it is not `one` and an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a question with the most similar known name; if none is similar, the known names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"expected one of: {names(known)}"


def typed(command: str) -> str:
    """Returns a command with its program's path in this environment, unless PATH finds it there."""
    program, _, rest = command.partition(" ")
    own, found = Path(sys.executable).parent / program, shutil.which(program)
    if not own.is_file() or (found and os.path.samefile(found, own)):
        return command
    near = os.path.relpath(own)
    return f"{own if near.startswith(os.pardir) else near} {rest}"


def _cut(items: Iterable[object], shown: int) -> Sequence[object]:
    items = list(items)
    if len(items) <= shown + 1:  # a line that says "1 more" could as well hold it
        return items
    return [*items[:shown], f"... and {len(items) - shown} more"]
