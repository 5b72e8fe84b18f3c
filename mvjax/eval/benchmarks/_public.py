"""Local copies of public data below `--data ROOT`: missing files are named, images load when asked."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mvjax import messages
from mvjax.data import images as images_lib
from mvjax.data.ingest import items, sources
from mvjax.data.records import dataset
from mvjax.data.speech import spoken
from mvjax.eval import benchmarks, image_files

# What to download, and where it lies below ROOT.
COCO_IMAGES = (
    "unpack val2014.zip (for TallyQA train2014.zip, too) of cocodataset.org as ROOT/coco/val2014"
)
KARPATHY = (
    "put dataset_coco.json of caption_datasets.zip (cs.stanford.edu/people/karpathy/deepimagesent)"
    " into ROOT/coco"
)
VQAV2 = (
    "put the validation questions and annotations (v2_*_val2014_*.json) of visualqa.org"
    " into ROOT/vqav2"
)
OCR_VQA = "put dataset.json and the covers (images/KEY.EXT) of ocr-vqa.github.io into ROOT/ocr-vqa"
BABILLAGE = "download kyutai/Babillage of huggingface.co as ROOT/babillage"

_DAMAGE = ("damaged", "missing", "questions and answers differ")  # reasons for which readers skip
_PART = re.compile(r"-(\d+)-of-(\d+)$")


def folder(root: Path | None, name: str, *, get: str) -> Path:
    """ROOT/NAME; raises FileNotFoundError, or ValueError without a root, saying what to put there."""
    if root is None:
        raise ValueError(f"{benchmarks.NO_ROOT.format(f'{name}/')}; {get}")
    if not (root / name).is_dir():
        raise FileNotFoundError(f"{root / name}: expected a folder, there is none; {get}")
    return root / name


@contextlib.contextmanager
def reading(place: Path, *, get: str) -> Iterator[items.SkippedItems]:
    """Gives a reader of `data.ingest` its skips; raises where a file is missing or anything is damaged.

    What a dataset itself leaves empty is skipped and reported: no reader can ask it.
    """
    skips = items.SkippedItems()
    try:
        yield skips
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {get}") from error
    damage = [skips.examples[reason] for reason in skips.counts if reason.startswith(_DAMAGE)]
    if damage:
        facts = f"{skips.summary()} ({messages.names(damage, between='; ')})"
        raise ValueError(f"{place}: expected whole files, got {facts}; {get}")
    skips.report()


def tables(source: Path, *patterns: str) -> list[Path]:
    """The Parquet files of the first pattern that matches any.

    Raises:
      FileNotFoundError: if there is none, or one of those that names such as
        "-00000-of-00004" count is missing.
      ValueError: if one has no row.
    """
    paths = sources.the_files(source, *patterns)
    counted = [(path, found) for path in paths if (found := _PART.search(path.stem))]
    for path, found in counted:
        parts = {int(other[1]) for _, other in counted if other[2] == found[2]}
        if missing := sorted({*range(int(found[2]))} - parts):
            raise FileNotFoundError(
                f"{path.parent}: expected {int(found[2])} files such as {path.name}, missing are the numbers"
                f" {messages.names(missing, shown=8)}"
            )
    if empty := [path.name for path in paths if _count(path) == 0]:
        raise ValueError(f"{source}: expected rows, got none in {messages.names(empty, shown=3)}")
    return paths


def check_images(paths: Iterable[Path], *, get: str) -> None:
    """Raises FileNotFoundError if images are missing: a score without them would be another one."""
    missing = sorted({str(path) for path in paths if not path.is_file()})
    if missing:
        count = messages.counted(len(missing), "image")
        raise FileNotFoundError(f"{count} missing: {messages.names(missing, shown=3)}; {get}")


def image(path: Path) -> benchmarks.LoadImage:
    """Loads the image of a file when asked."""
    return image_files.ImageFile(path)


def image_cell(path: Path, row: int) -> benchmarks.LoadImage:
    """Loads the image in a row of a Parquet file when asked."""
    return functools.partial(_decode_cell, path, row)


def speech_cell(path: Path, row: int, column: str) -> benchmarks.LoadSpeech:
    """Loads the sound in a row of a Parquet file when asked, at 24 kHz."""
    return functools.partial(_listen, path, row, column)


def row_of(place: str, paths: Iterable[Path]) -> tuple[Path, int]:
    """The file and the row of a place that `sources.parquet_rows` names."""
    name, _, row = place.rpartition(":")
    return next(path for path in paths if path.name == name), int(row)


def _decode_cell(path: Path, row: int) -> np.ndarray:
    content = _content(path, row, "image")
    with _named(f"{path}, row {row}"):
        return images_lib.decode(content, limits=dataset.LIMITS)


def _listen(path: Path, row: int, column: str) -> np.ndarray:
    content = _content(path, row, column)
    with _named(f"{path}, row {row}, column {column}"):
        (samples,) = spoken.read_audio(content, channels=1)
    return samples


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _content(path: Path, row: int, column: str) -> bytes:
    starts = _row_groups(path)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    cell = _row_group(path, column, group)[row - starts[group]].as_py()
    if not cell or not cell["bytes"]:
        raise ValueError(f"{path}: expected bytes in column {column} of row {row}, got none")
    return cell["bytes"]


def _count(path: Path) -> int | None:
    """The rows of a Parquet file; None if it is damaged, which its reader tells."""
    import pyarrow
    from pyarrow import parquet

    with contextlib.suppress(pyarrow.ArrowException, OSError):
        return parquet.read_metadata(path).num_rows
    return None


@functools.lru_cache(maxsize=64)
def _row_groups(path: Path) -> list[int]:
    """The first row of each row group."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        counts = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    return [sum(counts[:n]) for n in range(len(counts))]


@functools.lru_cache(maxsize=2)  # samples are asked in the order of the rows
def _row_group(path: Path, column: str, group: int) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column])[column]
