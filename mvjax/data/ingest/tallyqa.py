"""TallyQA: counting questions, one record each.

Published on github.com/manoja328/tallyqa as tallyqa.zip with `train.json` and `test.json`; the images are
COCO's (`train2014/`, `val2014/`) and Visual Genome's (`VG_100K/`, `VG_100K_2/`):

    [{"answer": 4, "data_source": "imported_genome", "image": "VG_100K_2/2410408.jpg", "image_id": 92410408,
      "issimple": false, "question": "How many headlights does the black bus have?", "question_id": 30095774}]

The train split does not tell simple from complex questions: `issimple` may be absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mvjax.data.ingest import items, sources, templates


class _TallyQuestion(msgspec.Struct):
    answer: int
    image: str
    question: str
    question_id: int
    issimple: bool | None = None


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[items.Item]:
    """Yields the questions of a split; `images` together hold all the image folders."""
    path = sources.the_file(source, f"{split}.json", f"tallyqa/{split}.json")
    entries = sources.decode_json(path, msgspec.json.Decoder(list[msgspec.Raw]))
    for entry in sources.json_entries(path, entries, _TallyQuestion, skips):
        name = f"tallyqa-{split}-{entry.question_id}"
        if not entry.question.strip():
            skips.add(name, "empty question", path.name)
            continue
        kinds = ("counting",)
        if entry.issimple is not None:
            kinds = ("counting", "simple" if entry.issimple else "complex")
        picture = sources.find_image(images, entry.image)
        turns = templates.question(entry.question, str(entry.answer))
        facts = {"question_id": entry.question_id, "answers": str(entry.answer)}
        yield items.Item(name, picture, turns, kinds, facts)
