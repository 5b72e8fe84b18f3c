"""OCR-VQA: book covers, one record a question.

Published on ocr-vqa.github.io as `dataset.json`; its download script saves the covers as
`images/KEY.EXT`, with the extension of the URL. Split 1 is train, 2 validation, 3 test:

    {"761183272": {"imageURL": "http://.../61Y5cOdHJbL.jpg", "questions": ["Who wrote this book?", ...],
                   "answers": ["Sandra Boynton", ...], "title": "...", "authorName": "...",
                   "genre": "Calendars", "split": 1}}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mvjax.data.ingest import items, sources, templates

_SPLITS = {"train": 1, "val": 2, "test": 3}


class _Book(msgspec.Struct):
    imageURL: str
    questions: list[str]
    answers: list[str]
    split: int


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[items.Item]:
    """Yields the questions of a split; `images` hold the covers, or an `images/` with them."""
    folders = [folder for root in images for folder in (root / "images", root)]
    path = sources.the_file(source, "dataset.json")
    books = sources.decode_json(path, msgspec.json.Decoder(dict[str, msgspec.Raw]))
    decoder = msgspec.json.Decoder(_Book)
    for key, entry in books.items():
        try:
            book = decoder.decode(entry)
        except sources.DAMAGE as error:
            skips.add(f"ocr-vqa-{key}", "damaged entry", error)
            continue
        if book.split != _SPLITS[split]:
            continue
        if len(book.questions) != len(book.answers):
            counts = f"{len(book.questions)} questions, {len(book.answers)} answers"
            skips.add(f"ocr-vqa-{split}-{key}", "questions and answers differ", counts)
            continue
        suffixes = (Path(book.imageURL).suffix, *sources.IMAGE_SUFFIXES)
        cover = sources.find_image(folders, key, suffixes=suffixes)
        for number, (question, answer) in enumerate(zip(book.questions, book.answers)):
            name = f"ocr-vqa-{split}-{key}-{number}"
            if not question.strip() or not answer.strip():
                skips.add(name, "empty question or answer", f"{question!r}, {answer!r}")
                continue
            turns = templates.question(question, answer)
            facts = {"image_id": key, "answers": templates.tidy(answer)}
            yield items.Item(name, cover, turns, ("reading",), facts)
