"""Writes TensorBoard event files without a thread, so that a full disk is an error of the caller."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

_event: Any = event_pb2  # made by protoc, which type checkers cannot see
_summary: Any = summary_pb2


class Events:
    """One event file of a run."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """Opens a file of a run at `step`; TensorBoard then drops later steps of earlier files."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = event_file_writer.EventsWriter(
            str(folder / "events"), f".{os.getpid()}.{step}"
        )
        start = _event.SessionLog(status=_event.SessionLog.START)
        self._write(_event.Event(step=step + 1, session_log=start))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of one step."""
        values = [
            _summary.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()
        ]
        self._write(_event.Event(step=step, summary=_summary.Summary(value=values)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
        self._file.flush()
