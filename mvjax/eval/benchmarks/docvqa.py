"""DocVQA, the validation split (5,349 questions about scanned pages): written questions, ANLS.

    ROOT/docvqa/val_v1.0_withQT.json                         rrc.cvc.uab.es, challenge 17, and the pages in
    ROOT/docvqa/spdocvqa_images/xnbl0037_1.png               spdocvqa_images/ or documents/; or
    ROOT/docvqa/DocVQA/validation-*.parquet                  lmms-lab/DocVQA of huggingface.co, pages inside

The answer is all that the model writes until it ends its turn; it scores its similarity to the nearest
accepted answer, case ignored. The test split has no public answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mvjax.data.ingest import docvqa, items, sources, templates
from mvjax.eval import benchmarks
from mvjax.eval.benchmarks import _public
from mvjax.eval.scoring import anls

_GET = (
    "put val_v1.0_withQT.json and the pages of rrc.cvc.uab.es, or lmms-lab/DocVQA, into ROOT/docvqa"
)


class _Question(msgspec.Struct):
    questionId: str
    question: str
    answers: list[str] | None


class DocVqa(benchmarks.Benchmark):
    """`truth` are the accepted answers."""

    name = "docvqa"
    metric = "ANLS"

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample a question."""
        source = _public.folder(self.root, "docvqa", get=_GET)
        in_tables = any(source.glob("*.parquet")) or any(source.glob("DocVQA/*.parquet"))
        with _public.reading(source, get=_GET) as skips:
            if in_tables:
                samples = _from_tables(source, skips)
            else:
                questions = list(docvqa.read(source, split="val", images=[source], skips=skips))
        if not in_tables:
            samples = _from_json(questions)
        return [samples[n] for n in benchmarks.drawn(len(samples), limit, seed)]

    def score(self, sample: Any, said: str) -> float:
        """ANLS of one answer."""
        return anls.best(templates.tidy(said), sample.truth)


def _from_json(questions: Sequence[items.Item]) -> list[benchmarks.Sample]:
    pages = [Path(str(item.image)) for item in questions]
    _public.check_images(pages, get=_GET)
    return [
        benchmarks.Sample(
            id=item.id,
            kind="document",
            prompt=item.turns[0].text,
            truth=str(item.facts["answers"]).split("\n"),
            image=_public.image(page),
            shows=str(page),
        )
        for item, page in zip(questions, pages, strict=True)
    ]


def _from_tables(source: Path, skips: items.SkippedItems) -> list[benchmarks.Sample]:
    paths = _public.tables(source, "DocVQA/validation-*.parquet", "validation-*.parquet")
    samples = []
    for place, question in sources.parquet_rows(paths, _Question, skips):
        answers = [answer for answer in map(templates.tidy, question.answers or ()) if answer]
        if not answers:
            skips.add(place, "no answer")
            continue
        samples.append(
            benchmarks.Sample(
                id=f"docvqa-val-{question.questionId}",
                kind="document",
                prompt=templates.tidy(question.question),
                truth=answers,
                image=_public.image_cell(*_public.row_of(place, paths)),
                shows=place,
            )
        )
    return samples
