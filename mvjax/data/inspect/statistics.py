"""Counts of a dataset's records, hours, words and lengths, as `mvjax data stats` prints them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from mvjax import types
from mvjax.data import streams
from mvjax.data.records import dataset

_BAR = 40  # characters of the longest bar
_LONGEST = 1 << 16  # tokens of a transcript; longer ones count as this


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of one dataset.

    Attributes:
      images: number of distinct images; with_image: number of records that have one.
      hours: of dialogue.
      turns, words: by speaker.
      kinds: {question kind: numbers of records with it and of their turns}.
      frames: {upper end of a bin: spoken records}; 12.5 a second.
      tokens: {upper end of a bin: records}, the length of the transcript as a speechless row.
      bad: number of unreadable records.
    """

    name: str
    records: int
    with_image: int
    images: int
    spoken: int
    hours: float
    turns: dict[str, int]
    words: dict[str, int]
    kinds: dict[str, dict[str, int]]
    frames: dict[int, int]
    tokens: dict[int, int]
    bad: int


def statistics(path: Path, tokenizer: streams.Tokenizer) -> Statistics:
    """Reads all records of a dataset, without their images."""
    reader = dataset.RecordReader(path, expected=None)
    with_image = spoken = bad = 0
    seconds = 0.0
    turns, words = collections.Counter(), collections.Counter()
    kinds: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    frames, tokens = collections.Counter(), collections.Counter()
    for i in range(len(reader)):
        try:
            row = reader.stored(i)
        except ValueError:
            bad += 1
            continue
        with_image += row.image is not None
        seconds += row.seconds
        if row.codes:
            spoken += 1
            frames[_bin(row.array().shape[1])] += 1
        ids, _ = streams.speechless_row(row.turns, tokenizer, _LONGEST)
        tokens[_bin(int((ids != types.ZERO_TOKEN).sum()))] += 1
        for turn in row.turns:
            turns[turn.speaker] += 1
            words[turn.speaker] += len(turn.text.split())
        for kind in set(row.kinds):
            kinds[kind].update(records=1, turns=len(row.turns))
    return Statistics(
        name=path.name,
        records=len(reader),
        with_image=with_image,
        images=sum(shard.count for shard in reader.index.images),
        spoken=spoken,
        hours=seconds / 3600,
        turns=dict(turns),
        words=dict(words),
        kinds={kind: dict(kinds[kind]) for kind in sorted(kinds)},
        frames=dict(sorted(frames.items())),
        tokens=dict(sorted(tokens.items())),
        bad=bad,
    )


def table(stats: Statistics) -> str:
    """Formats the statistics as text."""
    sides = ("user", "assistant")
    lines = [
        stats.name,
        *_facts(
            {
                "records": f"{stats.records:,} ({stats.bad:,} unreadable)",
                "with image": f"{stats.with_image:,} ({stats.images:,} different)",
                "spoken": f"{stats.spoken:,} ({stats.hours:.2f} hours)",
                **{
                    f"{side}'s turns": f"{stats.turns.get(side, 0):,} "
                    f"({stats.words.get(side, 0):,} words)"
                    for side in sides
                },
            }
        ),
    ]
    if stats.kinds:
        lines += ["  kind                     records      turns"]
        lines += [
            f"    {kind:20} {counts['records']:>10,} {counts['turns']:>10,}"
            for kind, counts in stats.kinds.items()
        ]
    lines += _histogram("frames of speech (80 ms)", stats.frames)
    lines += _histogram("tokens of the transcript as a row", stats.tokens)
    return "\n".join(lines)


def _facts(facts: Mapping[str, str]) -> Iterable[str]:
    return (f"  {name:18} {value}" for name, value in facts.items())


def _histogram(title: str, counts: Mapping[int, int]) -> list[str]:
    if not counts:
        return []
    most = max(counts.values())
    bars = [
        f"    {end // 2 + 1 if end > 1 else 0:>7,} ..{end:>8,} {n:>10,} {'#' * -(-_BAR * n // most)}"
        for end, n in counts.items()
    ]
    return [f"  {title}", *bars]


def _bin(length: int) -> int:
    """The smallest power of two that is not below a length."""
    return 1 << max(0, length - 1).bit_length()
