"""DocVQA (single page): one record a question, answered with the first accepted answer.

Published in two forms, of which the one that SOURCE holds is read.
On rrc.cvc.uab.es (challenge 17): `train_v1.0_withQT.json` or `train_v1.0.json` (and `val_...`) with the pages
in `spdocvqa_images/`, or in `train/documents/` in the older archives:

    {"dataset_name": "SP-DocVQA", "dataset_split": "train", "data": [
        {"questionId": 337, "question": "what is the date ...?", "question_types": ["handwritten", "form"],
         "image": "documents/xnbl0037_1.png", "docId": 279, "ucsf_document_id": "xnbl0037",
         "ucsf_document_page_no": "1", "answers": ["1/8/93"], "data_split": "train"}]}

On huggingface.co as lmms-lab/DocVQA: `DocVQA/train-*.parquet`, `DocVQA/validation-*.parquet`, the same
columns (questionId as string) with `image` as {"bytes", "path"}. The test splits have no public answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mvjax.data.ingest import items, sources, templates

_HUB_SPLITS = {"train": "train", "val": "validation"}


class _DocQuestion(msgspec.Struct):
    questionId: int | str
    question: str
    answers: list[str] | None
    image: str
    question_types: list[str] | None = None


class _HubRow(_DocQuestion):
    image: sources.Media | None = None


class _ChallengeFile(msgspec.Struct):
    data: list[msgspec.Raw]  # _DocQuestion


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[items.Item]:
    """Yields the questions of a split; `images` hold the folders of pages, if they are files."""
    if any(source.glob("*.parquet")) or any(source.glob("DocVQA/*.parquet")):
        questions = _from_hub(source, split, skips)
    else:
        questions = _from_json(source, split, images, skips)
    for question, picture in questions:
        name = f"docvqa-{split}-{question.questionId}"
        answers = [a for a in map(templates.tidy, question.answers or ()) if a]
        if not answers or not question.question.strip():
            skips.add(name, "empty question or answer", f"{question.question!r}, {answers}")
            continue
        turns = templates.question(question.question, answers[0])
        kinds = ("reading", *(question.question_types or ()))
        facts = {"question_id": str(question.questionId), "answers": "\n".join(answers)}
        yield items.Item(name, picture, turns, kinds, facts)


def _from_json(
    source: Path, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[tuple[_DocQuestion, Path]]:
    names = [f"{split}_v1.0_withQT.json", f"{split}_v1.0.json"]
    folders = ("", "spdocvqa_qas/", f"{split}/")
    path = sources.the_file(source, *(f"{folder}{name}" for folder in folders for name in names))
    roots = [r for root in images for r in (root, root / split, root / "spdocvqa_images")]
    entries = sources.decode_json(path, msgspec.json.Decoder(_ChallengeFile)).data
    for question in sources.json_entries(path, entries, _DocQuestion, skips):
        page = sources.find_image(roots, question.image)
        if not page.is_file():
            page = sources.find_image(roots[::-1], Path(question.image).name)
        yield question, page


def _from_hub(
    source: Path, split: str, skips: items.SkippedItems
) -> Iterator[tuple[_HubRow, bytes]]:
    pattern = f"{_HUB_SPLITS[split]}-*.parquet"
    paths = sources.the_files(source, f"DocVQA/{pattern}", pattern)
    for place, row in sources.parquet_rows(paths, _HubRow, skips, rows_at_once=16):
        if row.image is None or not row.image.content:
            skips.add(place, "missing image", "the row holds no image bytes")
            continue
        yield row, row.image.content
