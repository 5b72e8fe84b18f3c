"""TensorBoard event files of a run: written without a thread, and cut back when a run resumes earlier."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import soundfile
from google.protobuf import message

from mvjax import files
from mvjax.train import trackers

_unused = "torch" not in sys.modules
if _unused:  # tensorboardX would import it where it is installed, for seconds and to no use here
    sys.modules["torch"] = cast(Any, None)
from tensorboardX import event_file_writer, summary  # noqa: E402
from tensorboardX.proto import event_pb2, summary_pb2  # noqa: E402

if _unused:
    del sys.modules["torch"]

_event: Any = event_pb2  # made by protoc, which type checkers cannot see
_summary: Any = summary_pb2
_HEADER, _FOOTER = struct.Struct("<QI"), 4  # length and its checksum, event, its checksum


class Events:
    """TensorBoard as a tracker: an event file, written without a thread; a full disk is said."""

    def __init__(self, folder: Path, *, step: int, say: Callable[[str], None]) -> None:
        """Opens a file of a run at `step`; later steps of earlier files are dropped.

        They are also dropped by a TensorBoard that has read them already.
        """
        self._folder, self._say = folder, say
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("events.*"):
            _truncate(path, step)
        suffix = f".{os.getpid()}.{step}"
        self._file = event_file_writer.EventsWriter(str(folder / "events"), suffix)
        start = _event.SessionLog(status=_event.SessionLog.START)
        self._write(_event.Event(step=step + 1, session_log=start))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds the curves of a step."""
        curves = trackers.scalars(metrics)
        values = [_summary.Summary.Value(tag=tag, simple_value=x) for tag, x in curves.items()]
        self._add(step, _summary.Summary(value=values))

    def table(self, step: int, name: str, rows: Sequence[trackers.Row]) -> None:
        """Adds a table as text, and the sounds in it."""
        columns, lines = trackers.cells(rows)
        lines = [columns, ["---"] * len(columns), *lines]
        text = "\n".join(f"| {' | '.join(map(_text, line))} |" for line in lines)
        self._add(step, summary.text(name, text))
        for sound in (sound for row in rows for sound in trackers.sounds(row)):
            try:
                clip, rate = soundfile.read(sound.path, always_2d=True)
            except (OSError, RuntimeError) as error:  # libsndfile's
                self._say(f"{sound.path}: cannot be shown: {error}")
            else:
                self._add(step, summary.audio(f"{name}/{sound.path.stem}", clip, rate))

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # said already
            self._file.close()

    def _add(self, step: int, content: Any) -> None:
        try:
            self._write(_event.Event(step=step, summary=content))
        except OSError as error:
            self._say(f"{self._folder}: step {step} is missing: {error}\nTraining goes on.")

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
        self._file.flush()


def _text(cell: Any) -> str:
    """A cell of a Markdown table."""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return "" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ")


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
