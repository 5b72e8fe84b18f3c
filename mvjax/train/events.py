"""TensorBoard event files of a run: written without a thread, and cut back when a run resumes earlier."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from google.protobuf import message

from mvjax import files

_unused = "torch" not in sys.modules
if _unused:  # tensorboardX would import it where it is installed, for seconds and to no use here
    sys.modules["torch"] = cast(Any, None)
from tensorboardX import event_file_writer  # noqa: E402
from tensorboardX.proto import event_pb2, summary_pb2  # noqa: E402

if _unused:
    del sys.modules["torch"]

_event: Any = event_pb2  # made by protoc, which type checkers cannot see
_summary: Any = summary_pb2
_HEADER, _FOOTER = struct.Struct("<QI"), 4  # length and its checksum, event, its checksum


class Events:
    """An event file for TensorBoard, written without a thread: a full disk is an error of the caller."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """Opens a file of a run at `step`; later steps of earlier files are dropped.

        They are also dropped by a TensorBoard that has read them already.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("events.*"):
            _truncate(path, step)
        suffix = f".{os.getpid()}.{step}"
        self._file = event_file_writer.EventsWriter(str(folder / "events"), suffix)
        start = _event.SessionLog(status=_event.SessionLog.START)
        self._write(_event.Event(step=step + 1, session_log=start))
        self.close = self._file.close

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of a step."""
        values = [_summary.Summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
        self._write(_event.Event(step=step, summary=_summary.Summary(value=values)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
        self._file.flush()


def _truncate(path: Path, step: int) -> None:
    """Drops the events after `step`, and one that a kill cut short."""
    data, kept, place = path.read_bytes(), [], 0
    while place + _HEADER.size <= len(data):
        size, _ = _HEADER.unpack_from(data, place)
        end = place + _HEADER.size + size + _FOOTER
        if end > len(data):
            break
        try:
            event = _event.Event.FromString(data[place + _HEADER.size : end - _FOOTER])
        except message.DecodeError:  # what follows cannot be told apart, either
            break
        if event.step <= step:
            kept.append(data[place:end])
        place = end
    if (content := b"".join(kept)) != data:
        files.write_atomic(path, content)
