"""What a run writes while it trains: metrics.jsonl, TensorBoard events, and one progress line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import console as rich_console
from rich import progress as rich_progress

from mvjax import files, run_folder
from mvjax.train import clock as clock_lib
from mvjax.train import distributed, events, flops


class RunLog:
    """Metrics to files and to the terminal; use as a context manager. Only the first process writes.

    Attributes:
      last: the last line written, in this session or before.
      clock: where the time goes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        steps: int,
        every: int,
        throughput: flops.Throughput,
        quiet: bool = False,
    ) -> None:
        """Opens the logs of a run that has done `step` of `steps` steps; later lines are dropped."""
        self._first = jax.process_index() == 0
        self._throughput, self._steps, self._every = throughput, steps, every
        self._pending: clock_lib.Settled | None = None
        self.clock = clock_lib.Clock()
        self.last: dict[str, Any] = {}
        self._files: _Files | None = None
        if self._first:
            self.last = _truncate(folder / run_folder.METRICS, step)
            self._files = _Files(folder, step=step, say=self.warn)
        self._quiet = quiet
        self._console = rich_console.Console(quiet=quiet or not self._first, stderr=True)
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=24),
            console=self._console,
            disable=self._console.quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(f"step {step}/{steps}", total=steps, completed=step)

    def __enter__(self) -> RunLog:
        """Shows the progress line."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the line and the files."""
        self._bar.stop()
        if self._files is not None:
            self._files.close()

    @property
    def frames_per_second(self) -> float | None:
        """Throughput over recent steps: frames of speech rows and tokens of speechless ones per second."""
        seconds = self.clock.seconds_per_step
        return None if math.isnan(seconds) else self._throughput.frames_per_second(seconds)

    @property
    def utilization(self) -> float | None:
        """Model FLOP utilization (MFU) over recent steps; None where the devices' peak is not published."""
        seconds = self.clock.seconds_per_step
        return None if math.isnan(seconds) else self._throughput.mfu(seconds)

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> clock_lib.Settled | None:
        """Takes the metrics of a step that may still be running; settles and returns the step before it."""
        settled = self.settle()
        self._pending = clock_lib.Settled(step, metrics)
        return settled

    def settle(self) -> clock_lib.Settled | None:
        """Waits for the pending step, counts its time, writes its metrics if they are due, returns it."""
        settled, self._pending = self._pending, None
        if settled is None:
            return None
        step, metrics = settled
        jax.block_until_ready(metrics)
        self.clock.tick()
        self._bar.update(self._task, completed=step)
        if step % self._every == 0 or step in (1, self._steps):
            self._write(step, {name: np.asarray(value) for name, value in metrics.items()})
        return settled

    def say(self, text: str) -> None:
        """Prints a notice above the progress line, from the first process."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Prints a notice from this process, whichever it is."""
        if self._first:
            self.say(text)
        elif not self._quiet:
            print(f"{distributed.name()}: {text}", file=sys.stderr, flush=True)

    def _write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        seconds = self.clock.seconds
        line: dict[str, Any] = {"step": step}
        line |= {name: _json_number(value) for name, value in metrics.items()}
        line["seconds_per_step"] = sum(seconds.values()) if seconds else None
        line |= {f"seconds_{part}": value for part, value in seconds.items()}
        line["frames_per_second"] = self.frames_per_second
        line["model_flop_utilization"] = self.utilization
        line["host_memory_gb"] = clock_lib.host_memory_gb()
        line["device_memory_gb"] = clock_lib.device_memory_gb()
        self.last = line
        if self._files is not None:
            self._files.write(line)
        self._show(line)

    def _show(self, line: Mapping[str, Any]) -> None:
        loss = math.nan if line["loss"] is None else line["loss"]
        text = f"step {line['step']}/{self._steps}  loss {loss:.4f}"
        seconds = line["seconds_per_step"]
        if seconds is not None:
            text += f"  {line['frames_per_second']:,.0f} frames/s  {seconds:.3g} s/step"
            for part in ("data", "checkpoint"):
                if (share := line[f"seconds_{part}"] / seconds) >= 0.01:
                    text += f" ({share:.0%} {part})"
        if line["model_flop_utilization"] is not None:
            text += f"  {line['model_flop_utilization']:.1%} of peak"
        memory = line["device_memory_gb"] or line["host_memory_gb"]
        text += f"  {memory:.1f} GB"
        if line["skipped"]:
            text += f"  {line['skipped']} steps skipped"
        if seconds is not None:
            left = round((self._steps - line["step"]) * seconds)
            text += f"  {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        if self._bar.disable:
            self.say(text)
        else:
            self._bar.update(self._task, description=text)


class _Files:
    """metrics.jsonl and TensorBoard events; what a full disk does not take is kept until it does."""

    def __init__(self, folder: Path, *, step: int, say: Any) -> None:
        self._path, self._say = folder / run_folder.METRICS, say
        self._file = self._path.open("ab", buffering=0)
        self._waiting: list[str] = []
        self._events = events.Events(folder / run_folder.TENSORBOARD, step=step)

    def write(self, line: Mapping[str, Any]) -> None:
        self._waiting.append(json.dumps(line) + "\n")
        try:
            self._append("".join(self._waiting).encode())
            self._waiting.clear()
            self._events.add(line["step"], _scalars(line))
        except OSError as error:
            self._say(
                f"{self._path}: cannot write the metrics of step {line['step']}: {error}\n"
                f"Training goes on; free space. {len(self._waiting)} lines wait."
            )

    def close(self) -> None:
        if self._waiting:
            self._say(f"{self._path}: the last {len(self._waiting)} lines could not be written")
        self._file.close()
        with contextlib.suppress(OSError):  # said already
            self._events.close()

    def _append(self, data: bytes) -> None:
        """Writes all or nothing: no half line is left for the next one to be joined to."""
        whole = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) != len(data):
                raise OSError("the disk is full")
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(whole)
            raise


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
    files.write_atomic(path, "".join(json.dumps(metrics) + "\n" for metrics in kept).encode())
    return kept[-1] if kept else {}


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns what TensorBoard can plot: numbers, and those of a list one by one."""
    scalars = {}
    for name, value in line.items():
        if isinstance(value, list):
            scalars |= {f"{name}/{i:02}": float(v) for i, v in enumerate(value) if v is not None}
        elif value is not None and name != "step":
            scalars[name] = float(value)
    return scalars


def _json_number(value: Any) -> Any:
    """JSON has no NaN: null says that a number was not finite. An array becomes a list."""
    if np.ndim(value):
        return [_json_number(item) for item in value]
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
