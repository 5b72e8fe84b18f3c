"""What users say: recordings, each of one kind, from files."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from mvjax import messages
from mvjax.data.speech import spoken
from mvjax.eval.health import timing

FOLDERS: dict[str, timing.Kind] = {"pauses": "pause", "interruptions": "interruption"}
_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")


@dataclasses.dataclass(frozen=True)
class Recording:
    """What the user says, at 24 kHz, and what there is to see all the while (of the model's image size)."""

    id: str
    kind: timing.Kind
    samples: Float[np.ndarray, " samples"]
    image: UInt8[np.ndarray, "height width 3"]


def read(
    places: Sequence[Path], images: Sequence[UInt8[np.ndarray, "height width 3"]]
) -> list[Recording]:
    """Reads audio files of one channel, and those in folders and their subfolders; images in turn.

    Files in a folder named "pauses" or "interruptions" are of that kind, all others questions.

    Raises:
      ValueError: if a place is neither an audio file nor a folder with some, or a file is no audio.
    """
    paths = [path for place in places for path in _files(place)]
    return [
        Recording(
            "/".join(path.parts[-2:]),
            FOLDERS.get(path.parent.name, "question"),
            spoken.read_audio(path, channels=1)[0],
            image,
        )
        for path, image in zip(paths, itertools.cycle(images), strict=False)
    ]


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    found = [path for path in sorted(place.rglob("*")) if path.suffix.lower() in _SUFFIXES]
    if not found:
        raise ValueError(
            f"{place}: expected an audio file or a folder with some"
            f" ({messages.names(_SUFFIXES)}), found none"
        )
    return found
