"""metrics.jsonl: a line a logged step, mended where a kill or a full disk left it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvjax import files, messages, run_folder
from mvjax.train import trackers


class MetricsFile:
    """metrics.jsonl as a tracker; on a full disk, lines wait until there is space.

    `last` is the last line of earlier sessions.
    """

    def __init__(self, folder: Path, *, step: int, say: Callable[[str], None]) -> None:
        """Opens the file of a run that has done `step` steps; lines of later steps are dropped."""
        self._path, self._say = folder / run_folder.METRICS, say
        self.last = _truncate(self._path, step, say)
        self._file = self._path.open("ab", buffering=0)
        self._waiting: list[str] = []

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a line."""
        self._waiting.append(json.dumps({"step": step, **metrics}) + "\n")
        try:
            self._append("".join(self._waiting).encode())
            self._waiting.clear()
        except OSError as error:
            self._say(
                f"{self._path}: cannot write the metrics of step {step}: {error}\n"
                "Training goes on; free some space."
                f" {messages.counted(len(self._waiting), 'line waits', 'lines wait')} to be written."
            )

    def table(self, step: int, name: str, rows: Sequence[trackers.Row]) -> None:
        """Tables are files of their own, below eval/."""

    def close(self) -> None:
        """Says what could not be written."""
        if self._waiting:
            lost = messages.counted(len(self._waiting), "line")
            self._say(f"{self._path}: could not write the last {lost}")
        self._file.close()

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


def _truncate(path: Path, step: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Drops the lines after `step`, and one that a kill cut short; returns the last that is left.

    Damaged lines are set aside in a file beside it, and `say` takes which.
    """
    if not path.exists():
        return {}
    whole = path.read_bytes()
    *lines, _ = whole.split(b"\n")  # what follows the last line break is a line cut short
    kept, last, damaged = [], {}, {}
    for number, line in enumerate(lines, 1):
        try:
            metrics = _read_line(line)
        except (ValueError, RecursionError) as error:
            damaged[number] = (line, error)
            continue
        if metrics["step"] <= step:
            kept.append(line + b"\n")
            last = metrics
    if damaged:
        aside = path.with_name(run_folder.DAMAGED_METRICS)
        with aside.open("ab") as file:
            file.writelines(line + b"\n" for line, _ in damaged.values())
        told = (f"line {number}: {error}" for number, (_, error) in damaged.items())
        say(f"{path}: {len(damaged)} damaged lines, moved to {aside.name}:{messages.lines(told)}")
    if (content := b"".join(kept)) != whole:
        files.write_atomic(path, content)
    return last


def _read_line(line: bytes) -> dict[str, Any]:
    metrics = json.loads(line)
    if not (isinstance(metrics, dict) and type(metrics.get("step")) is int):
        raise ValueError('expected an object with a whole number "step"')
    return metrics
