"""The published datasets that `mvjax data ingest` and `mvjax data encode` can read.

The `read` of a module yields an `items.Item` (image and text) or a `spoken.Spoken` per sample. How to add a
dataset: docs/data.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from mvjax import messages


@dataclasses.dataclass(frozen=True)
class CatalogEntry:
    """One published dataset, and what its folders hold."""

    summary: str
    splits: tuple[str, ...]  # the first is the default
    source: str
    images: str = ""  # empty: the images are in the dataset's own files
    spoken: bool = False  # its samples are `spoken.Spoken`, for `mvjax data encode`


DATASETS = {
    "coco": CatalogEntry(
        "COCO captions, Karpathy split", ("train", "val", "test"), "dataset_coco.json",
        "train2014/ and val2014/",
    ),
    "vqav2": CatalogEntry(
        "VQAv2", ("train", "val"),
        "v2_OpenEnded_mscoco_*_questions.json and v2_mscoco_*_annotations.json",
        "train2014/ and val2014/",
    ),
    "ocr-vqa": CatalogEntry(
        "OCR-VQA, book covers", ("train", "val", "test"), "dataset.json", "the covers, by key",
    ),
    "tallyqa": CatalogEntry(
        "TallyQA, counting", ("train", "test"), "train.json and test.json",
        "train2014/, val2014/ (COCO), VG_100K/ and VG_100K_2/ (Visual Genome)",
    ),
    "docvqa": CatalogEntry(
        "DocVQA, single pages", ("train", "val"),
        "train_v1.0_withQT.json or DocVQA/train-*.parquet", "the pages; none for Parquet",
    ),
    "rendered-text": CatalogEntry("RenderedText", ("train",), "*.tar"),
    "pixmo-cap": CatalogEntry(
        "PixMo-Cap, long human captions", ("train",), "data/train-*.parquet",
        "images named by the SHA-256 of their URL, or the output of img2dataset",
    ),
    "docci": CatalogEntry(
        "DOCCI, long human descriptions", ("train", "test", "qual_dev", "qual_test"),
        "docci_descriptions.jsonlines", "the pictures",
    ),
    "pixelprose": CatalogEntry(
        "PixelProse, captions by a model", ("train", "cc12m", "commonpool", "redcaps"),
        "data/vlm_captions_*.parquet",
        "the output of img2dataset, or images named by the SHA-256 of their URL",
    ),
    "babillage": CatalogEntry(
        "Babillage, spoken questions about images",
        ("coco-validation", "coco-test", "ocrvqa-validation", "ocrvqa-test", "vqav2-validation"),
        "coco/, ocrvqa/ and vqav2/ with *.parquet", "those of the dataset it speaks", spoken=True,
    ),
    "moshi-finetune": CatalogEntry(
        "stereo speech with word times", ("all",), "*.jsonl, or one such file", spoken=True,
    ),
}  # fmt: skip


def find(name: str, split: str | None) -> tuple[CatalogEntry, str]:
    """The dataset, and the split or its default; raises ValueError if there is no such one."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; {messages.did_you_mean(name, DATASETS)}")
    dataset = DATASETS[name]
    chosen = split or dataset.splits[0]
    if chosen not in dataset.splits:
        raise ValueError(
            f"{name}: expected a split of {', '.join(dataset.splits)}, got {chosen!r}"
            " (splits without public answers cannot be ingested)"
        )
    return dataset, chosen


def reader(name: str) -> Callable[..., Iterator[Any]]:
    """The `read` of a dataset's module; imported when it is needed, as some bring audio libraries."""
    from mvjax.data.ingest import (
        babillage,
        coco,
        docci,
        docvqa,
        moshi_finetune,
        ocr_vqa,
        pixelprose,
        pixmo_cap,
        rendered_text,
        tallyqa,
        vqav2,
    )

    modules = {
        "coco": coco, "vqav2": vqav2, "ocr-vqa": ocr_vqa, "tallyqa": tallyqa, "docvqa": docvqa,
        "rendered-text": rendered_text, "pixmo-cap": pixmo_cap, "docci": docci,
        "pixelprose": pixelprose, "babillage": babillage, "moshi-finetune": moshi_finetune,
    }  # fmt: skip
    return modules[name].read
