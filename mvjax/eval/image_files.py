"""Images that are files: loaded when asked, and known again, so that a changed one is asked about again."""

from __future__ import annotations

import dataclasses
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvjax import messages
from mvjax.data import images
from mvjax.data.records import dataset

Stamp = list[int]  # size in bytes, time of the last change in nanoseconds, CRC-32 of the content


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A `benchmarks.LoadImage`."""

    path: Path

    def __call__(self) -> np.ndarray:
        """Returns the pixels; raises ValueError naming the file."""
        try:
            return images.decode(self.path.read_bytes(), limits=dataset.LIMITS)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def stamp(self) -> Stamp:
        """Returns what tells this content from another; it reads the file."""
        status = self.path.stat()
        return [status.st_size, status.st_mtime_ns, zlib.crc32(self.path.read_bytes())]

    def is_as(self, stamp: Stamp) -> bool:
        """Whether the file is as it was; it is read only if it has another time, as copies may."""
        status = self.path.stat()
        if [status.st_size, status.st_mtime_ns] == stamp[:2]:
            return True
        return status.st_size == stamp[0] and self.stamp()[2] == stamp[2]


def stamp(sample: Any, mode: str) -> Stamp | None:
    """Returns the stamp of what a `benchmarks.Sample` shows in a mode, if that is its own image, a file."""
    own = mode in ("text", "audio") and isinstance(sample.image, ImageFile)
    return sample.image.stamp() if own else None


def unchanged(lines: Sequence[dict[str, Any]], samples: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns the lines of a journal but those about files that have changed since, and says how many."""
    shown = {s.id: s.image for s in samples if isinstance(s.image, ImageFile)}
    kept = [
        line
        for line in lines
        if not line.get("image")
        or line["id"] not in shown
        or shown[line["id"]].is_as(line["image"])
    ]
    if changed := len(lines) - len(kept):
        counted = messages.counted(changed, "answer")
        print(f"{counted} about images that have changed since: asked again", file=sys.stderr)
    return kept
