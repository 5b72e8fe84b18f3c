"""Babillage's spoken questions: their text, and their sound when asked."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from mvjax.data.ingest import sources, templates
from mvjax.eval import benchmarks
from mvjax.eval.benchmarks import _public

# Questions come after an opening greeting, as in the dialogues that such models are trained on.
PROTOCOL = benchmarks.PromptProtocol(lead_in=5.0, tail=20.0)


class Prompt(NamedTuple):
    """One spoken question."""

    sample_id: int
    image_id: int  # VQAv2's rows have none: -1
    text: str
    answer: str  # what the assistant says in the dataset; VQAv2's rows have none: empty
    speech: benchmarks.LoadSpeech


class _Row(msgspec.Struct):
    sample_id: int
    question_transcript: list[str] | None


class _RowWithAnswer(_Row):
    image_id: int
    answer_transcript: list[str] | None


def prompts(root: Path | None, part: str, split: str) -> list[Prompt]:
    """The questions of a part ("coco", "ocrvqa", "vqav2") in a split ("validation", "test")."""
    source = _public.folder(root, "babillage", get=_public.BABILLAGE)
    found = []
    with _public.reading(source, get=_public.BABILLAGE) as skips:
        paths = _public.tables(source, f"{part}/{split}-*.parquet")
        kind = _Row if part == "vqav2" else _RowWithAnswer
        for place, row in sources.parquet_rows(paths, kind, skips, rows_at_once=1024):
            answered = isinstance(row, _RowWithAnswer)
            found.append(
                Prompt(
                    row.sample_id,
                    row.image_id if answered else -1,
                    templates.tidy(" ".join(row.question_transcript or ())),
                    templates.tidy(" ".join((row.answer_transcript if answered else None) or ())),
                    _public.speech_cell(*_public.row_of(place, paths), "question_audio"),
                )
            )
    return found
