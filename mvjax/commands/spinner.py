"""The line on a terminal that says how far a command is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def shown(text: str) -> Iterator[Callable[[str], None]]:
    """Shows a text that turns and its time, on standard error if that is a terminal.

    Yields:
      What replaces the text.
    """
    from rich import console, progress

    terminal = console.Console(stderr=True)
    line = progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeElapsedColumn(),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )
    with line:
        task = line.add_task(text)
        yield lambda text: line.update(task, description=text)
