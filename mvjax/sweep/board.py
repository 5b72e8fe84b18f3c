"""What a sweep shows while it runs: a live table on a terminal, else a line for each change."""

from __future__ import annotations

import sys
import threading
import time
from typing import NamedTuple

from rich import console as rich_console
from rich import live as rich_live
from rich import table as rich_table
from rich import text as rich_text

from mvjax import messages
from mvjax.sweep import outcome, trials

WAITS, TRAINS, EVALUATES = "waits", "train", "eval"
FINISHED, FAILED, STOPPED, ELSEWHERE = "finished", "failed", "stopped", "elsewhere"
_STYLES = {WAITS: "dim", FINISHED: "green", FAILED: "bold red", ELSEWHERE: "yellow"}
_SHOWN_WIDTH = 30  # columns of a cell


class _Cell(NamedTuple):
    state: str = WAITS
    scores: str = ""


class Board:
    """The state of every run; `set` may be called in any thread. Use as a context manager."""

    def __init__(self, runs: list[trials.TrialRun], *, title: str) -> None:
        self._runs, self._title = runs, title
        self._cells = {str(run): _Cell() for run in runs}
        self._errors: dict[str, str] = {}
        self._mutex, self._began = threading.Lock(), time.monotonic()
        self._console = rich_console.Console(file=sys.stderr)
        self._live = rich_live.Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Board:
        """Shows the table, on a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last table, or the counts, and every error, on the screen."""
        if self._console.is_terminal:
            self._live.stop()  # removes the live one
            self._console.print(self._table())
        self._say(self._counts())
        for name, error in self._errors.items():
            self._say(f"\n{name} failed:{messages.lines(error.splitlines())}")

    def set(self, run: trials.TrialRun, state: str, detail: str = "", scores: str = "") -> None:
        """Takes a new state; `detail` is its reason."""
        with self._mutex:
            before, self._cells[str(run)] = self._cells[str(run)], _Cell(state, scores)
            if state == FAILED:
                self._errors[str(run)] = detail
        if before.state != state and not self._console.is_terminal:
            reason = _cause(detail) if state in (FAILED, ELSEWHERE) else [scores]
            seconds = f"{time.monotonic() - self._began:7.0f} s"
            self._say("  ".join(part for part in (seconds, str(run), state, *reason) if part))

    def refresh(self) -> None:
        """Draws the table anew."""
        if self._console.is_terminal:
            shown = rich_console.Group(self._table(), self._counts())
            self._live.update(shown, refresh=True)

    def count(self, state: str) -> int:
        """Returns how many runs are in a state."""
        with self._mutex:
            return sum(cell.state == state for cell in self._cells.values())

    def _table(self) -> rich_table.Table:
        """One row a trial and one column a seed."""
        seeds = sorted({run.seed for run in self._runs})
        rows: dict[str, dict[int, rich_text.Text]] = {}
        for run in self._runs:
            rows.setdefault(run.name, {})[run.seed] = self._shown(run)
        table = rich_table.Table(title=self._title, title_justify="left")
        table.add_column("trial", overflow="fold")
        for seed in seeds:
            table.add_column(f"seed {seed}", max_width=_SHOWN_WIDTH)
        for name, cells in rows.items():
            table.add_row(name, *(cells[seed] for seed in seeds))
        return table

    def _shown(self, run: trials.TrialRun) -> rich_text.Text:
        cell = self._cells[str(run)]
        words = outcome.progress(run) or cell.state if cell.state == TRAINS else cell.state
        if cell.state == FINISHED and cell.scores:
            words = cell.scores
        return rich_text.Text(words, style=_STYLES.get(cell.state, ""))

    def _counts(self) -> str:
        states = [cell.state for cell in self._cells.values()]
        order = (FINISHED, FAILED, TRAINS, EVALUATES, ELSEWHERE, STOPPED, WAITS)
        counts = [f"{states.count(state)} {state}" for state in order if state in states]
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        return (
            f"{messages.counted(len(states), 'run')}: {', '.join(counts)}; {minutes}:{seconds:02}"
        )

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _cause(detail: str) -> list[str]:
    """Of what failed: its message, or the last line; as `running` puts them, how it ended comes first."""
    first, *lines = detail.strip().splitlines() or [""]
    command = f"{first.partition(':')[0]}: "
    return [line for line in lines if line.startswith(command)][:1] or [first, *lines][-1:]
