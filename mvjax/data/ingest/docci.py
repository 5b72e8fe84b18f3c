"""DOCCI: long human descriptions, one record each.

Published on google.github.io/docci as `docci_descriptions.jsonlines` and docci_images.tar.gz, which unpacks
to `images/`; splits are train, test, qual_dev and qual_test:

    {"example_id": "qual_dev_00000", "split": "qual_dev", "image_file": "qual_dev_00000.jpg",
     "description": "An indoor angled down ..."}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mvjax.data.ingest import items, sources, templates


class _Example(msgspec.Struct):
    example_id: str
    split: str
    image_file: str
    description: str


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[items.Item]:
    """Yields the descriptions of a split; `images` hold the pictures, or an `images/` with them."""
    folders = [folder for root in images for folder in (root / "images", root)]
    path = sources.the_file(source, "docci_descriptions.jsonlines")
    for _, example in sources.json_lines(path, msgspec.json.Decoder(_Example), skips):
        name = f"docci-{example.example_id}"
        if example.split != split:
            continue
        if not example.description.strip():
            skips.add(name, "empty caption", path.name)
            continue
        picture = sources.find_image(folders, example.image_file)
        turns = templates.caption(name, example.description)
        yield items.Item(name, picture, turns, ("caption",), {"example_id": example.example_id})
