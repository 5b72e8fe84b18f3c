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

from mvjax import files

Line = dict[
    str, Any
]  # "id", "mode", "kind", "prompt", "said", "score", "gates", "seconds", "batch", ...


class Journal:
    """The lines of one evaluation; use as a context manager."""

    def __init__(self, path: Path, identity: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Opens the file and reads what an earlier session wrote.

        Args:
          path: NAME.samples.jsonl; its folder is made.
          identity: JSON values; if those of the file differ, or `fresh` is set, it starts empty.
          fresh: begin anew.

        `lines` are those that were there, `differs` the names in which an earlier file had another identity.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        known = path.with_suffix(".identity")
        identity = json.loads(json.dumps(identity))  # as it is read back
        earlier = _read_identity(known) if path.exists() else None
        self.differs: list[str] = []
        if earlier is not None:
            names = earlier.keys() | identity.keys()
            self.differs = sorted(n for n in names if earlier.get(n) != identity.get(n))
        if earlier is None or self.differs or fresh:
            path.unlink(missing_ok=True)
            files.write_atomic(known, (json.dumps(identity, indent=1) + "\n").encode())
        self.lines, size = _whole_lines(path)
        self._file = path.open("ab")
        self._file.truncate(size)

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


def _read_identity(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # a file that nobody vouches for
        return None


def _whole_lines(path: Path) -> tuple[list[Line], int]:
    """Returns the lines up to the first that is torn or damaged, and their size in bytes."""
    lines: list[Line] = []
    size = 0
    for raw in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            line = json.loads(raw)
        except ValueError:
            break
        if not (raw.endswith(b"\n") and isinstance(line, dict)):
            break
        lines.append(line)
        size += len(raw)
    return lines, size
