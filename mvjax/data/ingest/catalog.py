"""The datasets that `mvjax data ingest` knows: what each is, its splits, and what its folder holds."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from types import ModuleType


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One published dataset.

    Attributes:
      summary: in a few words.
      splits: the first is the default.
      source: what the source folder holds.
      images: what the image folders hold; empty: the images are in the dataset's own files.
      spoken: it has speech: its items are `spoken.Spoken` and go through a codec.
    """

    summary: str
    splits: tuple[str, ...]
    source: str
    images: str = ""
    spoken: bool = False


DATASETS = {
    "coco": Dataset(
        "COCO captions, Karpathy split", ("train", "val", "test"), "dataset_coco.json",
        "train2014/ and val2014/",
    ),
    "vqav2": Dataset(
        "VQAv2", ("train", "val"),
        "v2_OpenEnded_mscoco_*_questions.json and v2_mscoco_*_annotations.json",
        "train2014/ and val2014/",
    ),
    "ocr-vqa": Dataset(
        "OCR-VQA, book covers", ("train", "val", "test"), "dataset.json", "the covers, by key",
    ),
    "tallyqa": Dataset(
        "TallyQA, counting", ("train", "test"), "train.json and test.json",
        "train2014/, val2014/ (COCO), VG_100K/ and VG_100K_2/ (Visual Genome)",
    ),
    "docvqa": Dataset(
        "DocVQA, single pages", ("train", "val"),
        "train_v1.0_withQT.json or DocVQA/train-*.parquet", "the pages; none for Parquet",
    ),
    "rendered-text": Dataset("RenderedText", ("train",), "*.tar"),
    "pixmo-cap": Dataset(
        "PixMo-Cap, long human captions", ("train",), "data/train-*.parquet",
        "images named by the SHA-256 of their URL, or the output of img2dataset",
    ),
    "docci": Dataset(
        "DOCCI, long human descriptions", ("train", "test", "qual_dev", "qual_test"),
        "docci_descriptions.jsonlines", "the pictures",
    ),
    "pixelprose": Dataset(
        "PixelProse, captions by a model", ("train", "cc12m", "commonpool", "redcaps"),
        "data/vlm_captions_*.parquet",
        "the output of img2dataset, or images named by the SHA-256 of their URL",
    ),
    "babillage": Dataset(
        "Babillage, spoken questions about images",
        ("coco-validation", "coco-test", "ocrvqa-validation", "ocrvqa-test", "vqav2-validation"),
        "coco/, ocrvqa/ and vqav2/ with *.parquet", "those of the dataset it speaks", spoken=True,
    ),
    "moshi-finetune": Dataset(
        "stereo speech with word times", ("all",), "*.jsonl, or one such file", spoken=True,
    ),
}  # fmt: skip


def find(name: str, split: str | None) -> tuple[Dataset, str]:
    """The dataset, and the split or its default.

    Raises:
      ValueError: if there is none of that name, or it has no such split.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"dataset {name!r}: expected one of {', '.join(DATASETS)}{meant}")
    dataset = DATASETS[name]
    chosen = split or dataset.splits[0]
    if chosen not in dataset.splits:
        raise ValueError(
            f"{name}: expected a split of {', '.join(dataset.splits)}, got {chosen!r}"
            " (splits without public answers cannot be ingested)"
        )
    return dataset, chosen


def reader(name: str) -> ModuleType:
    """The module that reads a dataset: `read(source, split=, images=, skips=)` yields its items."""
    return importlib.import_module(f"mvjax.data.ingest.{name.replace('-', '_')}")
