"""Answers as they come, one JSON line each, so that an evaluation that was killed goes on where it was.

NAME.samples.jsonl has whole lines and at most one torn one, the last, which is dropped. Beside it,
NAME.samples.identity (JSON) says what was asked of whom; lines of another identity are not continued.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mvjax import files, messages

Line = dict[
    str, Any
]  # "id", "mode", "kind", "prompt", "said", "score", "gates", "seconds", "batch", ...


class _Needed(msgspec.Struct):
    """What an evaluation that goes on reads of a line."""

    id: str
    mode: str
    prompt: str
    said: str
    seconds: float
    batch: tuple[str, int]
    gates: dict[str, list[float]] | None


class Journal:
    """The lines of one evaluation; use as a context manager."""

    def __init__(self, path: Path, identity: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Opens the file and reads what an earlier session wrote.

        Args:
          path: NAME.samples.jsonl; its folder is made.
          identity: JSON values.
          fresh: begin anew: what is there is removed.

        `lines` are those that were there. Damaged lines, and all but the last about one sample in one mode,
        are taken out of the file; `dropped` says which, "" if none was.

        Raises:
          ValueError: if the file has lines of another identity, or of none.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        identity = dict(json.loads(json.dumps(identity)))  # as it is read back
        if fresh:
            path.unlink(missing_ok=True)
        if (earlier := read_identity(path)) is None:
            path.unlink(missing_ok=True)
            known = (json.dumps(identity, indent=1) + "\n").encode()
            files.write_atomic(_beside(path), known)
        elif earlier != identity:
            names = sorted(n for n in {*earlier, *identity} if earlier.get(n) != identity.get(n))
            raise ValueError(f"{path}: expected answers of this evaluation, got another {names}")
        self.lines, self.dropped = self._read()
        self._file = path.open("ab")

    def write(self, lines: Sequence[Line]) -> None:
        """Appends lines; when it returns they are on the disk."""
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._file.close()

    def _read(self) -> tuple[list[Line], str]:
        """The good lines, which alone stay in the file, and what was dropped."""
        content = self.path.read_bytes() if self.path.exists() else b""
        kept: dict[tuple[str, str], tuple[bytes, Line]] = {}
        damaged, twice, whole = [], 0, content.rpartition(b"\n")[0].split(b"\n")
        for number, raw in enumerate(whole if b"\n" in content else (), start=1):
            try:
                line = json.loads(raw)
                needed = msgspec.convert(line, _Needed)
            except (ValueError, msgspec.ValidationError) as error:
                damaged.append(f"line {number} ({error})")
                continue
            twice += kept.pop((needed.mode, needed.id), None) is not None
            kept[needed.mode, needed.id] = raw, line
        good = b"".join(raw + b"\n" for raw, _ in kept.values())
        if good != content:
            files.write_atomic(self.path, good)
        told = [f"{messages.counted(twice, 'answer')} given twice"] if twice else []
        if damaged:
            counted = messages.counted(len(damaged), "damaged line")
            told.append(f"{counted}, asked again: {messages.names(damaged, shown=3)}")
        return [line for _, line in kept.values()], "; ".join(told)


def read_identity(path: Path) -> dict[str, Any] | None:
    """Returns what the lines of NAME.samples.jsonl answer, {} if nothing says so; None without a line."""
    if not path.exists() or not path.stat().st_size:
        return None
    try:
        return dict(json.loads(_beside(path).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def remove(path: Path) -> None:
    """Removes NAME.samples.jsonl, and what its lines answer."""
    path.unlink(missing_ok=True)
    _beside(path).unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_suffix(".identity")
