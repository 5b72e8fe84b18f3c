"""What a run writes while it trains: metrics.jsonl, TensorBoard events, and one progress line."""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX
from rich import console as rich_console
from rich import progress as rich_progress

METRICS = "metrics.jsonl"
RECENT = 50  # steps that the shown speed is a mean of


class RunLog:
    """Metrics to files and to the terminal; use as a context manager.

    Attributes:
      seconds_per_step: mean over recent steps.
    """

    def __init__(
        self, folder: Path, *, step: int, steps: int, frames_per_step: int, quiet: bool = False
    ) -> None:
        """Opens the logs of a run that has done `step` of `steps` steps; later lines are dropped."""
        _truncate(folder / METRICS, step)
        self._file = (folder / METRICS).open("a")
        self._events = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._frames = frames_per_step
        self._steps = steps
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._console = rich_console.Console(quiet=quiet, stderr=True)
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=24),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(f"step {step}/{steps}", total=steps, completed=step)

    def __enter__(self) -> RunLog:
        """Shows the progress line."""
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Closes the files and the line."""
        self._bar.stop()
        self._file.close()
        self._events.close()

    @property
    def seconds_per_step(self) -> float:
        """Mean over recent steps; NaN before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else math.nan

    def tick(self, step: int, seconds: float, *, compiled: bool) -> None:
        """Counts one finished step; one that compiled tells nothing about speed."""
        if not compiled:
            self._recent.append(seconds)
        self._bar.update(self._task, completed=step)

    def write(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Writes one line of metrics with the speed, shows it, and returns it."""
        speed = self.seconds_per_step
        line = {
            "step": step,
            **{name: _json_number(value) for name, value in metrics.items()},
            "seconds_per_step": _json_number(speed),
            "frames_per_second": _json_number(self._frames / speed),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in line.items():
            if name != "step" and value is not None:
                self._events.add_scalar(name, value, step)
        self._show(step, metrics)
        return line

    def say(self, text: str) -> None:
        """Prints a notice above the progress line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, step: int, metrics: Mapping[str, float]) -> None:
        speed = self.seconds_per_step
        text = f"step {step}/{self._steps}  loss {metrics['loss']:.4f}"
        if not math.isnan(speed):
            left = round((self._steps - step) * speed)
            text += f"  {self._frames / speed:,.0f} frames/s"
            text += f"  {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        if metrics["skipped"]:
            text += f"  {metrics['skipped']:.0f} steps skipped (not finite)"
        if self._bar.disable:
            self.say(text)
        else:
            self._bar.update(self._task, description=text)


def _truncate(path: Path, step: int) -> None:
    """Keeps the lines up to `step`; a line cut short by a kill goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)


def _json_number(value: float) -> float | int | None:
    """JSON has no NaN: null says that the number was not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)
