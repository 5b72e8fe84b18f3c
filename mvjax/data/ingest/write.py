"""Ingests a published dataset of images and text: writes its records, and the list of skipped items."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mvjax.data.ingest import catalog, items, sources
from mvjax.data.records import dataset

BAD_RECORDS = ".bad_records.jsonl"  # after the dataset's name


@dataclasses.dataclass(frozen=True)
class IngestSummary:
    """The outcome of an ingestion.

    Attributes:
      index: of the records.
      skipped: numbers of skipped items by reason.
      listing: the file that lists them.
    """

    index: dataset.DatasetIndex
    skipped: dict[str, int]
    listing: Path


def write_text(
    name: str,
    source: Path,
    path: Path,
    *,
    split: str | None = None,
    images: Sequence[Path] = (),
    limit: int | None = None,
    workers: int = 4,
    budget: int | None = None,
    progress: Callable[[int, int], None] = lambda written, skipped: None,
) -> IngestSummary:
    """Reads a dataset of images and text and writes its records as ROOT/NAME.

    Args:
      name: in the catalog.
      source: the folder with the dataset's files as published.
      path: ROOT/NAME.
      split: None: the first in the catalog.
      images: folders with the images, searched in order; none: `source`, and `source`/images if it
        exists.
      limit: stop after so many records.
      workers: threads that prefetch images.
      budget: items that may be skipped; None: any number.
      progress: called after each record with the numbers of records and of skipped items.

    Raises:
      ValueError: if the dataset, split or its files are not as expected, nothing could be read,
        or more items were skipped than the budget allows. Only the list is written then.
      FileNotFoundError: naming the files or folders that are missing.
    """
    entry, split = catalog.find(name, split)
    if entry.spoken:
        raise ValueError(
            f"{name}: has speech; use mvjax data encode EXP.py {source} --dataset {name}"
        )
    sources.check_folders(images)
    folders = list(images) or _default_folders(source)
    listing = path.with_name(f"{path.name}{BAD_RECORDS}")
    count = 0
    with (
        dataset.RecordWriter(path, dataset.Identity()) as writer,
        items.SkippedItems(listing, budget=budget) as skips,
    ):
        samples = catalog.reader(name)(source, split=split, images=folders, skips=skips)
        with contextlib.closing(items.records_of(samples, skips, workers=workers)) as complete:
            for record in complete:
                try:
                    writer.add(record)
                except ValueError as error:
                    skips.add(record.id, "refused record", error)
                    continue
                count += 1
                progress(count, skips.counts.total())
                if count == limit:
                    break
        if not count:
            skips.refuse_nothing_read(source)
    return IngestSummary(writer.index, dict(skips.counts), listing)


def _default_folders(source: Path) -> list[Path]:
    folder = source if source.is_dir() else source.parent
    return [path for path in (folder, folder / "images") if path.is_dir()]
