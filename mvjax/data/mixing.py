"""Mixes datasets by weight; when a run resumes with other weights, each dataset continues where it was.

    step        0 ............ 500 .................
    weights     a 3, b 1       a 1, b 1
    elements    a0 a1 b0 a2 ...  a375 b125 a376 b126 ...

The run folder keeps the history of weights, so that the mixture stays a pure function of the step.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import grain
import msgspec

from mvjax import files
from mvjax.config import schema

PARTS = ("speech", "speechless")
ENDLESS = 1 << 48  # elements; grain adds and multiplies lengths, so not sys.maxsize


@dataclasses.dataclass(frozen=True)
class Segment:
    """The sources of both parts and their weights, from a step on."""

    step: int
    speech: tuple[schema.Source, ...]
    speechless: tuple[schema.Source, ...]


History = tuple[Segment, ...]


def start(data: schema.DataConfig) -> History:
    """Returns the history of a run whose weights have not changed."""
    return (Segment(0, data.speech, data.speechless),)


def resume(path: Path, data: schema.DataConfig, step: int) -> tuple[History, str]:
    """Returns the history of a run that resumes at `step` with these sources, and a note on what changed.

    Segments of later steps in the file are dropped: these steps are trained anew.
    """
    if not path.is_file() or step == 0:
        return start(data), ""
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=History)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected a history of weights: {error}. Put back a copy; if the weights of this run"
            " never changed, delete the file"
        ) from error
    past = tuple(segment for segment in saved if segment.step < step)
    now = Segment(step, data.speech, data.speechless)
    if not past or past[0].step != 0:
        raise ValueError(f"{path}: expected a history from step 0 on, got {saved}")
    changes = [
        f"{part} {_words(getattr(past[-1], part))} -> {_words(getattr(now, part))}"
        for part in PARTS
        if getattr(past[-1], part) != getattr(now, part)
    ]
    if not changes:
        return past, ""
    return (*past, now), f"weights change at step {step}: {'; '.join(changes)}"


def write(path: Path, history: History) -> None:
    """Writes a history, atomically."""
    files.write_atomic(path, msgspec.json.format(msgspec.json.encode(history), indent=1))


def mix(
    history: History, part: str, *, rows: int, source: Callable[[str, int], Any], seed: int
) -> grain.MapDataset:
    """Returns the endless mixture of a part of PARTS; element s * rows + r is row r of step s.

    `source` opens a dataset as an endless random-access sequence, given its name and its number in order of
    first use. `seed` is that of random transformations that are added later.
    """
    names = list(dict.fromkeys(s.name for segment in history for s in getattr(segment, part)))
    opened = {name: grain.MapDataset.source(source(name, n)) for n, name in enumerate(names)}
    taken = dict.fromkeys(names, 0)
    pieces = []
    for segment, later in itertools.zip_longest(history, history[1:]):
        sources = getattr(segment, part)
        rest = [opened[s.name][taken[s.name] :] for s in sources]
        mixed = grain.MapDataset.mix(rest, weights=[s.weight for s in sources])
        if later is not None:
            count = (later.step - segment.step) * rows
            mixed = mixed[:count]
            for name, more in _counts(sources, count).items():
                taken[name] += more
        pieces.append(mixed)
    return grain.MapDataset.concatenate(pieces).seed(seed)


def _counts(sources: Sequence[schema.Source], elements: int) -> dict[str, int]:
    """Counts how many of the first `elements` of a mixture come from each source."""
    numbered = [
        grain.MapDataset.range(ENDLESS).map(lambda key, name=s.name: (name, key)) for s in sources
    ]
    mixed = grain.MapDataset.mix(numbered, weights=[s.weight for s in sources])
    counts: dict[str, int] = {}
    for index in range(elements - 1, -1, -1):  # back to where each source was seen last
        name, key = cast(tuple[str, int], mixed[index])
        counts.setdefault(name, int(key) + 1)
        if len(counts) == len(sources):
            break
    return counts


def _words(sources: Sequence[schema.Source]) -> str:
    return ", ".join(f"{s.name} {s.weight:g}" for s in sources)
