"""OCR-VQA's questions about book covers, and both of their exact matches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from mvjax.data.ingest import items, ocr_vqa, templates
from mvjax.eval import benchmarks, metrics
from mvjax.eval.benchmarks import _public
from mvjax.eval.scoring import exact

OURS = "letters and digits (ours)"  # a row of the table


class BookCovers(benchmarks.Benchmark):
    """`truth` is the one answer of each sample."""

    split: ClassVar[Literal["val", "test"]]

    def score(self, sample: Any, said: str) -> float:
        """Exact match, in any case, as big_vision's."""
        return exact.any_case(templates.tidy(said), sample.truth)

    def summary(self, answers: Sequence[metrics.ScoredAnswer]) -> metrics.Summary:
        """Exact match; the row OURS ignores punctuation and spaces, of which speech has none."""
        ours = [
            dataclasses.replace(a, score=exact.letters_and_digits(a.said, self._truths[a.id]))
            for a in answers
        ]
        summary = metrics.summary(answers)
        return summary._replace(kinds=summary.kinds | {OURS: metrics.summary(ours).overall})

    def questions(self) -> list[items.Item]:
        """Reads the split."""
        source = _public.folder(self.root, "ocr-vqa", get=_public.OCR_VQA)
        with _public.reading(source, get=_public.OCR_VQA) as skips:
            return list(ocr_vqa.read(source, split=self.split, images=[source], skips=skips))

    def known(self, samples: Sequence[benchmarks.Sample]) -> Sequence[benchmarks.Sample]:
        """Remembers the answers, for `summary`, and returns the samples."""
        self._truths: dict[str, str] = {sample.id: sample.truth for sample in samples}
        return samples


def cover(item: items.Item) -> Path:
    """The file of a question's image."""
    assert isinstance(item.image, Path)
    return item.image


class WrittenBookCovers(BookCovers):
    """Written questions."""

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample a question."""
        questions = self.questions()
        chosen = [questions[n] for n in benchmarks.drawn(len(questions), limit, seed)]
        _public.check_images(map(cover, chosen), get=_public.OCR_VQA)
        return self.known(
            [
                benchmarks.Sample(
                    id=item.id,
                    kind="exact match",
                    prompt=item.turns[0].text,
                    truth=item.facts["answers"],
                    image=_public.image(cover(item)),
                    shows=item.facts["image_id"],
                )
                for item in chosen
            ]
        )
