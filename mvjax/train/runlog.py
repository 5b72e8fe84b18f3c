"""What a run writes while it trains: metrics.jsonl, TensorBoard events, and one progress line."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import tensorboardX
from rich import console as rich_console
from rich import progress as rich_progress

METRICS = "metrics.jsonl"
RECENT = 50  # steps that the shown speed is a mean of


class RunLog:
    """Metrics to files and to the terminal; use as a context manager.

    Attributes:
      last: the last line written, in this session or before.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        steps: int,
        every: int,
        frames_per_step: int,
        quiet: bool = False,
    ) -> None:
        """Opens the logs of a run that has done `step` of `steps` steps; later lines are dropped."""
        self.last = _truncate(folder / METRICS, step)
        self._file = (folder / METRICS).open("a")
        self._events = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._frames = frames_per_step
        self._steps = steps
        self._every = every
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._compiled = False
        self._clock = time.monotonic()
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

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Closes the line and the files; on a full disk that fails too, and must not hide the first error."""
        self._bar.stop()
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            try:
                self._file.close()
            finally:
                self._events.close()

    @property
    def seconds_per_step(self) -> float:
        """Mean over recent steps; NaN before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else math.nan

    @property
    def frames_per_second(self) -> float | None:
        """Positions per second over recent steps: frames of speech rows, tokens of speechless ones."""
        return self._frames / self.seconds_per_step if self._recent else None

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step that may still be running, and settles the step before it."""
        self.settle()
        self._pending = (step, metrics)

    def settle(self) -> None:
        """Waits for the pending step, counts its time, and writes its metrics if they are due."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        jax.block_until_ready(metrics)
        now = time.monotonic()
        if self._compiled:
            self._recent.append(now - self._clock)
        self._compiled = True  # the first step's time was mostly compilation
        self._clock = now
        self._bar.update(self._task, completed=step)
        if step % self._every == 0 or step in (1, self._steps):
            self.write(step, {name: float(value) for name, value in metrics.items()})

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Keeps what is done inside out of the step times."""
        self.settle()
        yield
        self._clock = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line of metrics with the speed, and shows it."""
        speed = self.seconds_per_step
        line = {
            "step": step,
            **{name: _json_number(value) for name, value in metrics.items()},
            "seconds_per_step": _json_number(speed),
            "frames_per_second": self.frames_per_second,
        }
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in line.items():
                if name != "step" and value is not None:
                    self._events.add_scalar(name, value, step)
        except OSError as error:
            raise ValueError(
                f"{self._file.name}: cannot write the metrics of step {step}: {error}\n"
                "Checkpoints are untouched. Free space, then run the same command to resume."
            ) from error
        self.last = line
        self._show(step, metrics)

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


def _truncate(path: Path, step: int) -> dict[str, Any]:
    """Keeps the lines up to `step` and returns the last; a line cut short by a kill goes too."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            metrics = json.loads(line)
        except ValueError:
            continue
        if metrics["step"] <= step:
            kept.append(metrics)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(metrics) + "\n" for metrics in kept))
    os.replace(partial, path)
    return kept[-1] if kept else {}


def _json_number(value: float) -> float | int | None:
    """JSON has no NaN: null says that the number was not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)
