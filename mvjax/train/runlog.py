"""Logs a run: loss, learning rate, step time, throughput and MFU to metrics.jsonl, TensorBoard and a line."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import console as rich_console
from rich import progress as rich_progress

from mvjax import messages, run_folder
from mvjax.config import schema
from mvjax.stores import places
from mvjax.train import distributed, events, flops, memory, metrics_file, trackers
from mvjax.train import phases as phases_lib

_BAR = 12  # columns


class RunLog:
    """Metrics to files and to the terminal; use as a context manager. Only the first process writes.

    A step is logged while the devices run the one after it, so that they never wait for the log. `last` is
    the last line of metrics.jsonl, of this session or an earlier one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        settings: schema.TrainConfig,
        throughput: flops.Throughput,
        others: Mapping[str, Callable[[], trackers.Tracker]] | None = None,
        quiet: bool = False,
    ) -> None:
        """Opens the logs of a run that has done `step` steps; lines of later steps are dropped.

        `others` make trackers beside metrics.jsonl and TensorBoard.
        """
        self._first = jax.process_index() == 0
        self._throughput, self._steps, self._every = throughput, settings.steps, settings.log_every
        self._pending: phases_lib.DoneStep | None = None
        self._from_callbacks: dict[str, Any] = {}
        self.timer = phases_lib.StepTimer()
        self.step = step  # the last that was pushed
        self.last: dict[str, Any] = {}
        self._trackers: list[trackers.Tracker] = []
        self._quiet = quiet
        self._console = rich_console.Console(quiet=quiet or not self._first, stderr=True)
        if self._first:
            file = metrics_file.MetricsFile(folder, step=step, say=self.warn)
            self.last = file.last
            self._trackers.append(file)
            if "tensorboard" in settings.trackers:
                place = folder / run_folder.TENSORBOARD
                self._trackers.append(events.Events(place, step=step, say=self.warn))
            self._trackers += [
                trackers.Guarded(name, make, say=self.warn) for name, make in (others or {}).items()
            ]
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=_BAR),
            console=self._console,
            disable=self._console.quiet or not self._console.is_terminal,
        )
        shown = f"step {step}/{self._steps}"
        self._task = self._bar.add_task(shown, total=self._steps, completed=step)

    def __enter__(self) -> RunLog:
        """Shows the progress line."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the line and the files."""
        self._bar.stop()
        for tracker in self._trackers:
            tracker.close()

    @property
    def frames_per_second(self) -> float | None:
        """Throughput over recent steps: frames of speech rows and tokens of speechless ones per second."""
        seconds = sum(self.timer.seconds.values())
        return self._throughput.frames_per_second(seconds) if seconds else None

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> phases_lib.DoneStep | None:
        """Takes the metrics of a step that may still run; finishes and returns the step before it."""
        done = self.finish_step()
        self._pending, self.step = phases_lib.DoneStep(step, metrics), step
        return done

    def add(
        self,
        callback: str,
        metrics: Mapping[str, Any],
        tables: Mapping[str, Sequence[trackers.Row]] = types.MappingProxyType({}),
    ) -> None:
        """Adds the metrics of a callback to those of the step that was pushed last, which is then logged.

        The trackers get its tables.

        Raises:
          ValueError: naming the callback and each metric that is no number or list of numbers, or whose
            name is taken.
        """
        assert self._pending is not None
        taken = {"step", *self._pending.metrics, *self._measured(), *self._from_callbacks}
        numbers, bad = {}, [f"{name}: the name is taken" for name in metrics if name in taken]
        for name, value in metrics.items():
            try:
                numbers[name] = np.asarray(value, np.float64)
            except (TypeError, ValueError):
                bad.append(f"{name}: expected a number or a list of numbers, got {value!r}")
        if bad:
            raise ValueError(f"metrics of callback {callback}: {messages.names(bad, between='; ')}")
        self._from_callbacks |= numbers
        for name, rows in tables.items():
            for tracker in self._trackers:
                tracker.table(self.step, name, rows)

    def finish_step(self) -> phases_lib.DoneStep | None:
        """Waits for the pending step, ends its time, logs its metrics if they are due, and returns it."""
        done, self._pending = self._pending, None
        if done is None:
            return None
        added, self._from_callbacks = self._from_callbacks, {}
        jax.block_until_ready(done.metrics)
        self.timer.end_step()
        self._bar.update(self._task, completed=done.step)
        if done.step % self._every == 0 or done.step in (1, self._steps) or added:
            numbers = {name: _json_number(np.asarray(x)) for name, x in done.metrics.items()}
            shown = [name for name, value in added.items() if not value.ndim and "/" not in name]
            added = {name: _json_number(value) for name, value in added.items()}
            line = {**numbers, **self._measured(), **added}
            self.last = {"step": done.step, **line}
            for tracker in self._trackers:
                tracker.log(done.step, line)
            self._show(self.last, shown)
        return done

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Says that the step is compiled inside, and afterwards how long it took."""
        began = time.monotonic()
        if self._bar.disable:
            self.say("compiling the training step")
        self._bar.update(self._task, description="compiling the training step")
        yield
        self.say(f"compiled the training step in {time.monotonic() - began:.1f} s")

    def say(self, text: str) -> None:
        """Prints a notice above the progress line, from the first process."""
        self._console.print(places.named(text), markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Prints a notice from this process, whichever it is."""
        if self._first:
            self.say(text)
        elif not self._quiet:
            print(f"{distributed.name()}: {places.named(text)}", file=sys.stderr, flush=True)

    def _measured(self) -> dict[str, float | None]:
        """Step time by phase, throughput, MFU and peak memory so far; null before they are known."""
        seconds = self.timer.seconds
        total = sum(seconds.values())
        return {
            "seconds_per_step": total or None,
            **{f"seconds_{phase}": seconds.get(phase) for phase in phases_lib.PHASES},
            "frames_per_second": self.frames_per_second,
            "model_flop_utilization": self._throughput.mfu(total) if total else None,
            "host_memory_gb": memory.host_peak_gb(),
            "device_memory_gb": memory.device_peak_gb(),
        }

    def _show(self, line: Mapping[str, Any], added: Sequence[str]) -> None:
        """Shows a line of metrics.jsonl; `added` are the metrics of callbacks to show with it."""
        loss = math.nan if line["loss"] is None else line["loss"]
        parts = []
        seconds = line["seconds_per_step"]
        if seconds is not None:
            times = f"{line['frames_per_second']:,.0f} frames/s  {seconds:.3g} s/step"
            for phase in phases_lib.PHASES:
                share = line[f"seconds_{phase}"] / seconds
                if phase != "step" and share >= 0.01:
                    times += f" ({share:.0%} {phase})"
            parts = times.split("  ")
        if line["model_flop_utilization"] is not None:
            parts.append(f"MFU {line['model_flop_utilization']:.1%}")
        peak = line["device_memory_gb"] or line["host_memory_gb"]
        parts.append(f"{peak:.1f} GB")
        if line["skipped"]:
            parts.append(f"{messages.counted(line['skipped'], 'step')} skipped")
        parts += [f"{name} {line[name]:.4g}" for name in added if line[name] is not None]
        left = ""
        if seconds is not None:
            time_left = round((self._steps - line["step"]) * seconds)
            left = f"{time_left // 3600}:{time_left // 60 % 60:02}:{time_left % 60:02} left"
        head = f"step {line['step']}/{self._steps}  loss {loss:.4f}"
        if self._bar.disable:
            self.say(_joined(head, parts, left))
        else:
            width = self._console.width - _BAR - 2
            self._bar.update(self._task, description=_fitted(head, parts, left, width=width))


def _fitted(head: str, parts: Sequence[str], left: str, *, width: int) -> str:
    """Returns head, parts and the time left in so many columns: of the parts the first that fit."""
    for n in range(len(parts), 0, -1):
        if len(line := _joined(head, parts[:n], left)) <= width:
            return line
    return _joined(head, [], left)


def _joined(head: str, parts: Sequence[str], left: str) -> str:
    return "  ".join(part for part in (head, *parts, left) if part)


def _json_number(value: Any) -> Any:
    """JSON has no NaN: null says that a number was not finite. An array becomes a list."""
    if np.ndim(value):
        return [_json_number(item) for item in value]
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
