"""VQAv2: one record a question, answered with the most frequent of the ten human answers.

Published on visualqa.org as `v2_OpenEnded_mscoco_train2014_questions.json` and
`v2_mscoco_train2014_annotations.json` (and val2014), with COCO's images `train2014/COCO_train2014_%012d.jpg`:

    {"questions": [{"image_id": 458752, "question": "What ...?", "question_id": 458752000}], ...}
    {"annotations": [{"question_id": 458752000, "image_id": 458752, "question_type": "what is this",
                      "answer_type": "other", "multiple_choice_answer": "net",
                      "answers": [{"answer": "net", "answer_confidence": "maybe", "answer_id": 1}, ...]}]}

All ten answers go to the facts, one a line, for VQA accuracy. The test splits have no public answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mvjax.data.ingest import items, sources, templates


class VqaQuestion(msgspec.Struct):
    """A question."""

    image_id: int
    question: str
    question_id: int


class _Questions(msgspec.Struct):
    questions: list[msgspec.Raw]  # VqaQuestion


class _VqaAnswer(msgspec.Struct):
    answer: str


class VqaAnnotation(msgspec.Struct):
    """The human answers to a question."""

    question_id: int
    multiple_choice_answer: str
    answers: list[_VqaAnswer]
    answer_type: str


class _Annotations(msgspec.Struct):
    annotations: list[msgspec.Raw]  # VqaAnnotation


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[items.Item]:
    """Yields the questions of a split; `images` hold `train2014/` and `val2014/`."""
    folder = f"{split}2014"
    for question, annotation in answered(source, split=split, skips=skips):
        name = f"vqav2-{split}-{question.question_id}"
        image = f"{folder}/COCO_{folder}_{question.image_id:012d}.jpg"
        turns = templates.question(question.question, annotation.multiple_choice_answer)
        facts = {
            "image_id": question.image_id,
            "question_id": question.question_id,
            "answers": "\n".join(answer.answer for answer in annotation.answers),
        }
        kinds = ("question", annotation.answer_type)
        yield items.Item(name, sources.find_image(images, image), turns, kinds, facts)


def answered(
    source: Path, *, split: str, skips: items.SkippedItems, whole: bool = False
) -> Iterator[tuple[VqaQuestion, VqaAnnotation]]:
    """Yields the questions of a split, with their answers as published.

    With `whole`, what one of the two files lacks of the other is skipped as missing.
    """
    folder = f"{split}2014"
    asked = sources.the_file(source, f"v2_OpenEnded_mscoco_{folder}_questions.json")
    answers_file = sources.the_file(source, f"v2_mscoco_{folder}_annotations.json")
    answers = sources.decode_json(answers_file, msgspec.json.Decoder(_Annotations)).annotations
    answers = sources.json_entries(answers_file, answers, VqaAnnotation, skips)
    annotations = {annotation.question_id: annotation for annotation in answers}
    unasked = set(annotations) if whole else set()
    questions = sources.decode_json(asked, msgspec.json.Decoder(_Questions)).questions
    for question in sources.json_entries(asked, questions, VqaQuestion, skips):
        name = f"vqav2-{split}-{question.question_id}"
        annotation = annotations.get(question.question_id)
        unasked.discard(question.question_id)
        if whole and (annotation is None or not annotation.answers):
            skips.add(name, "missing answers", f"{answers_file.name} has none for this question")
            continue
        if annotation is None or not annotation.multiple_choice_answer.strip():
            skips.add(name, "no answer", f"{answers_file.name} has none for this question")
            continue
        if not question.question.strip():
            skips.add(name, "empty question", asked.name)
            continue
        yield question, annotation
    for number in sorted(unasked):
        skips.add(f"vqav2-{split}-{number}", "missing question", f"{asked.name} has not this one")
