"""MMLU after 0, 1, 2, 3, 5 and 10 turns about an image: context switching, from the image to other topics.

    ROOT/mmlu/data/test/*_test.csv                           data.tar of Hendrycks et al.; or
    ROOT/mmlu/all/test-*.parquet                             cais/mmlu of huggingface.co
    ROOT/vqav2/, ROOT/coco/dataset_coco.json, ROOT/coco/val2014/   as for `vqav2` and `coco`

Each of the 14,042 questions of the test split is asked after every prefix, without examples and without its
choices: the answer is the choice whose log-likelihood per token is highest. The image is in view
throughout. The talk about it (ours: the paper does not say which it took) are VQAv2's questions about one
image of Karpathy's test split with the most frequent answers, then its human captions on request; images
are taken that have ten such turns, and the question's id draws one. Mode "blind" has no image, and the same
talk: its "after 0" is the plain backbone, by which the paper's Figure 5 divides. A limit of N samples asks
N / 6 questions.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mvjax.data.ingest import coco, sources, templates
from mvjax.eval import benchmarks, metrics
from mvjax.eval.benchmarks import _prefixes, _public, vqav2

_GET = "unpack data.tar of MMLU (github.com/hendrycks/test), or download cais/mmlu, into ROOT/mmlu"


class _Question(NamedTuple):
    id: str
    text: str
    choices: tuple[str, ...]
    answer: int


class _Row(msgspec.Struct):
    question: str
    subject: str
    choices: list[str]
    answer: int


class Mmlu(benchmarks.Benchmark):
    """`truth` is the right choice."""

    name = "mmlu"
    modes = ("text", "blind")
    overall = "kinds"

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample for a question and a prefix."""
        questions = _read(self.root)
        talks = self._talks()
        samples = []
        for n in benchmarks.drawn(len(questions), _prefixes.questions(limit), seed):
            question = questions[n]
            path, pairs = talks[_prefixes.draw(question.id, len(talks))]
            samples += [
                benchmarks.Sample(
                    id=f"{question.id}-after-{turns}",
                    kind=_prefixes.kind(turns),
                    prompt=question.text,
                    truth=question.choices[question.answer],
                    image=_public.image(path),
                    shows=str(path),
                    topic="off-topic",
                    before=_prefixes.image_talk(pairs, turns),
                    choices=question.choices,
                )
                for turns in _prefixes.TURNS
            ]
        return samples[:limit]

    def score(self, sample: Any, said: str) -> float:
        """1 for the right choice."""
        return float(said == sample.truth)

    def summary(self, answers: Sequence[metrics.ScoredAnswer]) -> metrics.Summary:
        """As `_prefixes.summary`."""
        return _prefixes.summary(answers)

    def chance(self, kind: str) -> float:
        """A guess."""
        return 0.25

    def columns(self, kind: str) -> dict[str, Any]:
        """Direction and number of turns."""
        return _prefixes.columns(kind, "image to other")

    def _talks(self) -> list[tuple[Path, list[tuple[str, str]]]]:
        """Images, and ten turns about each."""
        source = _public.folder(self.root, "coco", get=_public.KARPATHY)
        with _public.reading(source, get=_public.KARPATHY) as skips:
            captioned = list(coco.captioned(source, split="test", skips=skips))
        asked: dict[int, list[tuple[str, str]]] = {image.cocoid: [] for image in captioned}
        for question, annotation in vqav2.read(self.root):
            if question.image_id in asked:
                pair = templates.question(question.question, annotation.multiple_choice_answer)
                asked[question.image_id].append((pair[0].text, pair[1].text))
        longest = max(_prefixes.TURNS)
        talks = {}
        for image in captioned:
            requests = zip(templates.CAPTION_REQUESTS, image.sentences)
            described = [(request, templates.tidy(s.raw)) for request, s in requests]
            if len(turns := asked[image.cocoid] + described) >= longest:
                talks[source / image.filepath / image.filename] = turns[:longest]
        if not talks:
            raise ValueError(
                f"{source}: expected images with {longest} questions and captions, got none;"
                f" {_public.VQAV2}"
            )
        _public.check_images(talks, get=_public.COCO_IMAGES)
        return list(talks.items())


def _read(root: Path | None) -> list[_Question]:
    source = _public.folder(root, "mmlu", get=_GET)
    with _public.reading(source, get=_GET) as skips:
        if not any(source.glob("all/test-*.parquet")):
            paths = sources.the_files(source, "data/test/*_test.csv", "test/*_test.csv")
            return [question for path in paths for question in _from_csv(path)]
        tables = _public.tables(source, "all/test-*.parquet")
        rows = [row for _, row in sources.parquet_rows(tables, _Row, skips)]
    return [
        _Question(f"mmlu-{row.subject}-{n}", row.question, tuple(row.choices), row.answer)
        for n, row in enumerate(rows)
    ]


def _from_csv(path: Path) -> Iterator[_Question]:
    subject = path.stem.removesuffix("_test")
    try:
        rows = list(csv.reader(io.StringIO(path.read_text("utf-8"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected CSV in UTF-8: {error}; {_GET}") from error
    if not rows:
        raise ValueError(f"{path}: expected questions, got an empty file; {_GET}")
    for n, row in enumerate(rows):
        if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
            raise ValueError(
                f"{path}:{n + 1}: expected a question, four choices and a letter, got {row}; {_GET}"
            )
        yield _Question(f"mmlu-{subject}-{n}", row[0], tuple(row[1:5]), "ABCD".index(row[5]))
