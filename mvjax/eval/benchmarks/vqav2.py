"""VQAv2, the validation split (214,354 questions): written questions, VQA accuracy.

    ROOT/vqav2/v2_OpenEnded_mscoco_val2014_questions.json    visualqa.org
    ROOT/vqav2/v2_mscoco_val2014_annotations.json
    ROOT/coco/val2014/COCO_val2014_000000262148.jpg          cocodataset.org

The answer is all that the model writes until it ends its turn, normalized as the official evaluator does. The
kinds are the types of answers; the last row is the mean over all questions, as papers report it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvjax.data.ingest import templates
from mvjax.data.ingest import vqav2 as published
from mvjax.eval import benchmarks
from mvjax.eval.benchmarks import _public
from mvjax.eval.scoring import vqa

Answered = tuple[published.VqaQuestion, published.VqaAnnotation]


class Vqav2(benchmarks.Benchmark):
    """`truth` are the ten human answers."""

    name = "vqav2"
    metric = "VQA accuracy"

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample a question."""
        answered = read(self.root)
        chosen = [answered[n] for n in benchmarks.drawn(len(answered), limit, seed)]
        paths = image_paths(self.root, [question.image_id for question, _ in chosen])
        return [
            benchmarks.Sample(
                id=f"vqav2-{question.question_id}",
                kind=annotation.answer_type,
                prompt=templates.tidy(question.question),
                truth=[given.answer for given in annotation.answers],
                image=_public.image(paths[question.image_id]),
                shows=question.image_id,
            )
            for question, annotation in chosen
        ]

    def score(self, sample: Any, said: str) -> float:
        """VQA accuracy."""
        return vqa.accuracy(said, sample.truth)


def read(root: Path | None) -> list[Answered]:
    """The questions of the validation split, with their answers."""
    source = _public.folder(root, "vqav2", get=_public.VQAV2)
    with _public.reading(source, get=_public.VQAV2) as skips:
        return list(published.answered(source, split="val", skips=skips, whole=True))


def image_paths(root: Path | None, ids: Sequence[int]) -> dict[int, Path]:
    """The files of COCO's validation images; raises FileNotFoundError if some are missing."""
    folder = _public.folder(root, "coco", get=_public.COCO_IMAGES) / "val2014"
    paths = {n: folder / f"COCO_val2014_{n:012d}.jpg" for n in ids}
    _public.check_images(paths.values(), get=_public.COCO_IMAGES)
    return paths
