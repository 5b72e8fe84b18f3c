"""COCO captions in the Karpathy split: one record a caption.

Published as `dataset_coco.json` in caption_datasets.zip (cs.stanford.edu/people/karpathy/deepimagesent),
with images in `train2014/` and `val2014/` from cocodataset.org:

    {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "split": "test",
                 "cocoid": 391895, "imgid": 0, "sentids": [...],
                 "sentences": [{"raw": "A man ...", "tokens": [...], "sentid": 770337, "imgid": 0}]}],
     "dataset": "coco"}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mvjax.data.ingest import items, sources, templates

# "restval" is the rest of val2014, which all published results train on.
_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


class Sentence(msgspec.Struct):
    """One caption."""

    raw: str
    sentid: int


class CaptionedImage(msgspec.Struct):
    """An image with its captions."""

    filename: str
    split: str
    cocoid: int
    sentences: list[Sentence]
    filepath: str = ""


class _KarpathyFile(msgspec.Struct):
    images: list[msgspec.Raw]  # CaptionedImage


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[items.Item]:
    """Yields the captions of a split; `images` hold `train2014/` and `val2014/`."""
    for image in captioned(source, split=split, skips=skips):
        picture = sources.find_image(images, f"{image.filepath}/{image.filename}")
        for sentence in image.sentences:
            name = f"coco-{split}-{sentence.sentid}"
            if not sentence.raw.strip():
                skips.add(name, "empty caption", image.filename)
                continue
            turns = templates.caption(name, sentence.raw)
            yield items.Item(name, picture, turns, ("caption",), {"image_id": image.cocoid})


def captioned(source: Path, *, split: str, skips: items.SkippedItems) -> Iterator[CaptionedImage]:
    """Yields the images of a split, with their captions as published."""
    path = sources.the_file(source, "dataset_coco.json", "karpathy/dataset_coco.json")
    entries = sources.decode_json(path, msgspec.json.Decoder(_KarpathyFile)).images
    for image in sources.json_entries(path, entries, CaptionedImage, skips):
        if image.split in _SPLITS[split]:
            yield image
