"""What the rows of a mixture hold: rows drawn as training draws them, without their images, and counted."""

from __future__ import annotations

import collections
import functools
from typing import NamedTuple, cast

import msgspec
import numpy as np

from mvjax import types
from mvjax.config import schema
from mvjax.data import examples, mixing, mixture, streams, windows
from mvjax.data.records import bad_records, dataset

_COLUMNS = ("rows", "whole", "start cut", "end cut", "switching", "padding", "targets cut")


class RowCounts(msgspec.Struct):
    """Counts of rows and their dialogues; unrelated talk counts in `switching` and `filled` only."""

    rows: int = 0
    whole: int = 0  # rows with every exchange of the dialogue
    start_cut: int = 0  # rows without the start of the dialogue
    end_cut: int = 0  # rows without the end of its last exchange
    switching: int = 0  # rows with a whole exchange of the dialogue and one of unrelated talk
    positions: int = 0  # frames or tokens that the rows have room for
    filled: int = 0  # of them, not padding
    targets: int = 0  # the assistant's words (speechless: tokens) in the whole dialogues
    targets_cut: int = 0  # of them, not in the rows


class _Row(NamedTuple):
    dataset: str
    start_cut: bool
    end_cut: bool
    switching: bool
    filled: int
    targets: int
    targets_kept: int


def count(run: schema.Config, *, rows: int) -> dict[str, dict[str, RowCounts]]:
    """Draws the first rows of each part; returns {part: {dataset: counts}}; raises as `mixture.batches`."""
    mixture.batches(run)  # checks the config, and makes missing records
    builder = _WithoutImages(run, bad_records.BadRecords(run.data.bad_record_budget))
    sizes = {"speech": run.data.speech_frames, "speechless": run.data.speechless_tokens}
    builds = {
        "speech": functools.partial(_speech, builder),
        "speechless": functools.partial(_speechless, builder, sizes["speechless"]),
    }
    found = {}
    for part in (name for name in mixing.PARTS if getattr(run.data, f"{name}_rows")):
        counts = collections.defaultdict(RowCounts)
        drawn = mixture.rows(run, part, builder, build=builds[part])
        for number in range(rows):
            row = cast(_Row, drawn[number])
            _add(counts[row.dataset], row, sizes[part])
        found[part] = dict(sorted(counts.items()))
    return found


def total(counts: dict[str, RowCounts]) -> RowCounts:
    """The sums over the datasets of a part."""
    names = RowCounts.__struct_fields__
    return RowCounts(*(sum(getattr(one, name) for one in counts.values()) for name in names))


def shares(counts: RowCounts) -> dict[str, float]:
    """The counts as shares: of the rows, of their positions, of the targets."""
    of_rows = ("whole", "start_cut", "end_cut", "switching")
    found = {name: getattr(counts, name) / max(counts.rows, 1) for name in of_rows}
    found["padding"] = 1 - counts.filled / max(counts.positions, 1)
    found["targets_cut"] = counts.targets_cut / max(counts.targets, 1)
    return found


def as_json(run: schema.Config, found: dict[str, dict[str, RowCounts]]) -> dict[str, object]:
    """Counts and shares of each dataset and of each part, with the `p_concat` that switching shall meet."""

    def both(counts: RowCounts) -> dict[str, object]:
        return {"counts": msgspec.structs.asdict(counts), "shares": shares(counts)}

    parts = {
        part: {
            "all": both(total(counts)),
            "datasets": {name: both(c) for name, c in counts.items()},
        }
        for part, counts in found.items()
    }
    return {"p_concat": run.data.p_concat, "parts": parts}


def table(run: schema.Config, found: dict[str, dict[str, RowCounts]]) -> str:
    """Formats the shares as text."""
    lines = []
    for part, counts in found.items():
        named = counts | ({"all": total(counts)} if len(counts) > 1 else {})
        width = max(len(part), *map(len, named))
        lines.append("  ".join([f"{part:{width}}", *(f"{name:>11}" for name in _COLUMNS)]))
        for name, one in named.items():
            cells = [f"{one.rows:>11,}", *(f"{share:>11.1%}" for share in shares(one).values())]
            lines.append("  ".join([f"{name:{width}}", *cells]))
        if part == "speech":
            switching = shares(total(counts))["switching"]
            lines.append(
                f"{switching:.1%} of the rows hold an exchange of the dialogue and one of unrelated talk;"
                f" data.p_concat is {run.data.p_concat:.1%}"
            )
        lines.append("")
    return "\n".join(lines[:-1])


class _WithoutImages(examples.ExampleBuilder):
    def _image(self, reader: dataset.RecordReader, record: dataset.StoredRecord) -> None:
        return None


def _speech(
    builder: examples.ExampleBuilder, loaded: examples.DecodedRecord, rng: np.random.Generator
) -> _Row:
    """Alone, or between unrelated talk."""
    pieces = builder.pieces(loaded, rng)
    bounds = [windows.spoken_exchanges(piece.record) for piece, _ in pieces]
    cut = [place for _, place in pieces]
    place, end = cut[len(cut) // 2], bounds[len(cut) // 2][-1]
    starts = [int(word.start * types.FRAME_RATE) for word in loaded.record.words or ()]
    return _Row(
        loaded.name.partition("/")[0],
        start_cut=place.start > 0,
        end_cut=place.stop < end,
        switching=len(cut) == 3
        and windows.holds_both(bounds[0], bounds[1], bounds[2], (cut[0], cut[1], cut[2])),
        filled=sum(one.stop - one.start for one in cut),
        targets=len(starts),
        targets_kept=sum(place.start <= start < place.stop for start in starts),
    )


def _speechless(
    builder: examples.ExampleBuilder,
    size: int,
    loaded: examples.DecodedRecord,
    rng: np.random.Generator,
) -> _Row:
    turns = loaded.record.turns
    tokens, kept = builder.turns(loaded, rng)
    _, targets = streams.joined_turns(turns, tokens, sum(map(len, tokens)) + 1)
    ids, targets_kept = streams.joined_turns(turns[kept], tokens[kept], size)
    return _Row(
        loaded.name.partition("/")[0],
        start_cut=kept.start > 0,
        end_cut=kept.stop < len(turns) or sum(map(len, tokens[kept])) + 1 > size,
        switching=False,
        filled=int((ids != types.ZERO_TOKEN).sum()),
        targets=int(targets.sum()),
        targets_kept=int(targets_kept.sum()),
    )


def _add(counts: RowCounts, row: _Row, size: int) -> None:
    counts.rows += 1
    counts.whole += not (row.start_cut or row.end_cut)
    counts.start_cut += row.start_cut
    counts.end_cut += row.end_cut
    counts.switching += row.switching
    counts.positions += size
    counts.filled += row.filled
    counts.targets += row.targets
    counts.targets_cut += row.targets - row.targets_kept
