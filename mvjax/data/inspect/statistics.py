"""Counts of a dataset's records, hours, words and lengths, as `mvjax data stats` prints them."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path

import msgspec

from mvjax import types
from mvjax.data import streams
from mvjax.data.records import dataset

_BAR = 40  # characters of the longest bar
_LONGEST = 1 << 16  # tokens of a transcript; longer ones count as this


class Statistics(msgspec.Struct):
    """Statistics of one dataset; `mvjax data stats --json` prints the fields."""

    name: str
    records: int
    with_image: int = 0  # records that have an image
    images: int = 0  # different images
    spoken: int = 0
    hours: float = 0.0  # of dialogue
    turns: dict[str, int] = {}  # by speaker
    words: dict[str, int] = {}
    kinds: dict[str, dict[str, int]] = {}  # {kind of question: numbers of its records, their turns}
    frames: dict[int, int] = {}  # {upper end of a bin: spoken records}; 12.5 a second
    tokens: dict[int, int] = {}  # {upper end of a bin: records}, as speechless rows
    bad: int = 0  # unreadable records


def statistics(path: Path, tokenizer: streams.Tokenizer) -> Statistics:
    """Reads all records of a dataset, without their images."""
    reader = dataset.RecordReader(path, expected=None)
    stats = Statistics(path.name, len(reader))
    stats.images = sum(shard.count for shard in reader.index.images)
    seconds = 0.0
    turns, words, frames, tokens = (collections.Counter() for _ in range(4))
    kinds = collections.defaultdict(collections.Counter)
    for i in range(len(reader)):
        try:
            row = reader.stored(i)
        except ValueError:
            stats.bad += 1
            continue
        stats.with_image += row.image is not None
        seconds += row.seconds
        if row.codes:
            stats.spoken += 1
            frames[_bin(row.frames)] += 1
        ids, _ = streams.speechless_row(row.turns, tokenizer, _LONGEST)
        tokens[_bin(int((ids != types.ZERO_TOKEN).sum()))] += 1
        for turn in row.turns:
            turns[turn.speaker] += 1
            words[turn.speaker] += len(turn.text.split())
        for kind in set(row.kinds):
            kinds[kind].update(records=1, turns=len(row.turns))
    stats.hours = seconds / 3600
    stats.turns, stats.words = dict(turns), dict(words)
    stats.kinds = {kind: dict(kinds[kind]) for kind in sorted(kinds)}
    stats.frames, stats.tokens = dict(sorted(frames.items())), dict(sorted(tokens.items()))
    return stats


def table(stats: Statistics) -> str:
    """Formats the statistics as text."""
    facts = {
        "records": f"{stats.records:,} ({stats.bad:,} unreadable)",
        "with image": f"{stats.with_image:,} ({stats.images:,} different)",
        "spoken": f"{stats.spoken:,} ({stats.hours:.2f} hours)",
    }
    for side in ("user", "assistant"):
        words = stats.words.get(side, 0)
        facts[f"{side}'s turns"] = f"{stats.turns.get(side, 0):,} ({words:,} words)"
    lines = [stats.name, *(f"  {name:18} {value}" for name, value in facts.items())]
    if stats.kinds:
        lines.append("  kind                     records      turns")
    for kind, counts in stats.kinds.items():
        lines.append(f"    {kind:20} {counts['records']:>10,} {counts['turns']:>10,}")
    lines += _histogram("frames of speech (80 ms)", stats.frames)
    lines += _histogram("tokens of the transcript as a row", stats.tokens)
    return "\n".join(lines)


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
