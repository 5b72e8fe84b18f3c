"""A record as a timeline: who speaks when, and the token in each frame of the text stream."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import sentencepiece
from PIL import Image

from mvjax import messages, types
from mvjax.config import schema
from mvjax.data import streams
from mvjax.data.records import dataset

PAD, EPAD, ABSENT = "pad", "epad", "absent"  # kinds of cells; a token is one of the next
TOKEN, LEARNED, CONTROL = "token", "learned", "control"

FIRST_WORD = 32  # id of the first word where no tokenizer is given; lower ids are special tokens
_PAUSE = 0.5  # seconds between words that end a span of speech
_COLUMNS = 25  # frames a printed line: 2 s
_SHOWN = {PAD: ".", EPAD: "+", ABSENT: " "}


@runtime_checkable
class Pieces(streams.Tokenizer, Protocol):
    """A tokenizer that also returns the text of an id."""

    def id_to_piece(self, id: int, /) -> str:
        """Returns the text of one id."""
        ...


class Words:
    """One id a word, where no tokenizer is given."""

    def __init__(self):
        self._ids: dict[str, int] = {}

    def encode(self, text: str, /) -> list[int]:
        """Returns one id for each word, numbered by first use."""
        return [self._ids.setdefault(w, FIRST_WORD + len(self._ids)) for w in text.split()]

    def id_to_piece(self, id: int, /) -> str:
        """Returns the word."""
        return list(self._ids)[id - FIRST_WORD]


def pieces(model: Path | None) -> Pieces:
    """Opens a SentencePiece model; None: words."""
    return sentencepiece.SentencePieceProcessor(model_file=str(model)) if model else Words()


@dataclasses.dataclass(frozen=True)
class TextCell:
    """One position of the text stream: a frame, or a token of a speechless row."""

    kind: str
    text: str = ""


@dataclasses.dataclass(frozen=True)
class SpeakerSpan:
    """An interval in which one side speaks without a longer pause."""

    speaker: str
    start: float
    end: float
    text: str


@dataclasses.dataclass(frozen=True)
class RecordTimeline:
    """The timeline of a record."""

    record: dataset.Record
    cells: tuple[TextCell, ...]  # the text stream on the 12.5 Hz grid, or the speechless row
    spans: tuple[SpeakerSpan, ...]  # of both sides (with known words), by start
    spoken: bool  # whether cells are frames


def timeline(record: dataset.Record, pieces: Pieces, model: schema.ModelConfig) -> RecordTimeline:
    """Makes the text stream as training does, with the model's PAD and EPAD."""
    if not record.codes:
        return RecordTimeline(record, _speechless(record, pieces), (), spoken=False)
    row = streams.text_stream(
        record.words, record.frames, pieces, pad=model.text_pad, epad=model.text_epad
    )
    special = {model.text_pad: PAD, model.text_epad: EPAD, types.ZERO_TOKEN: ABSENT}
    cells = tuple(
        TextCell(special[i]) if i in special else TextCell(TOKEN, _clean(pieces.id_to_piece(i)))
        for i in row.tolist()
    )
    spans = [*_spans("user", record.user_words or ()), *_spans("assistant", record.words or ())]
    by_start = tuple(sorted(spans, key=lambda span: span.start))
    return RecordTimeline(record, cells, by_start, spoken=True)


def text(shown: RecordTimeline) -> str:
    """Formats the timeline for a terminal."""
    record = shown.record
    facts = ", ".join(f"{key} {value}" for key, value in (record.facts or {}).items())
    speech = "none: text only"
    if shown.spoken:
        frames = f"{messages.counted(len(shown.cells), 'frame')} of {record.codebooks} codebooks"
        speech = f"{record.seconds:.2f} s, {frames}"
    lines = [
        record.id,
        f"  kinds  {', '.join(record.kinds) or 'none'}",
        f"  facts  {facts or 'none'}",
        f"  image  {_image(record.image)}",
        f"  speech {speech}",
        "  turns",
        *(f"    {turn.speaker:9}  {turn.text}" for turn in record.turns),
    ]
    if shown.spans:
        lines.append("  who speaks when (s)")
        lines += [f"    {s.start:6.2f} {s.end:6.2f}  {s.speaker:9}  {s.text}" for s in shown.spans]
    if shown.spoken and record.user_words is None:
        lines.append("    the user's words have no times in this record")
    legend = "80 ms each; . PAD  + EPAD" if shown.spoken else "as a speechless row"
    lines.append(f"  text stream ({legend})")
    for first in range(0, len(shown.cells), _COLUMNS):
        cells = shown.cells[first : first + _COLUMNS]
        place = f"{first * types.FRAME_SECONDS:6.2f} s" if shown.spoken else f"{first:8}"
        lines.append(f"    {place}  {' '.join(_SHOWN.get(c.kind, c.text) for c in cells)}")
    return "\n".join(lines)


def _speechless(record: dataset.Record, pieces: Pieces) -> tuple[TextCell, ...]:
    ids, learned = streams.speechless_row(record.turns, pieces, 1 << 16)
    names = {streams.BOS: "BOS", streams.EOS: "EOS"}
    given = ids != types.ZERO_TOKEN
    return tuple(
        TextCell(CONTROL, names[i])
        if i in names
        else TextCell(LEARNED if counts else TOKEN, _clean(pieces.id_to_piece(i)))
        for i, counts in zip(ids[given].tolist(), learned[given].tolist(), strict=True)
    )


def _spans(speaker: str, words: Sequence[dataset.Word]) -> list[SpeakerSpan]:
    spans: list[SpeakerSpan] = []
    for word in sorted(words, key=lambda w: w.start):
        if spans and word.start - spans[-1].end < _PAUSE:
            last = spans.pop()
            joined = f"{last.text} {word.text}"
            spans.append(SpeakerSpan(speaker, last.start, max(last.end, word.end), joined))
        else:
            spans.append(SpeakerSpan(speaker, word.start, word.end, word.text))
    return spans


def _clean(piece: str) -> str:
    """SentencePiece marks the start of a word with U+2581."""
    return piece.replace("\u2581", "") or "_"


def _image(content: bytes | None) -> str:
    if content is None:
        return "none"
    with Image.open(io.BytesIO(content)) as image:
        return f"{image.width}x{image.height} {image.format}, {len(content):,} bytes"
