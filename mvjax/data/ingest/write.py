"""Ingests a published dataset of images and text: writes its records, and the list of skipped items."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mvjax.data.ingest import catalog, items, sources
from mvjax.data.records import dataset


@dataclasses.dataclass(frozen=True)
class IngestSummary:
    """The outcome of an ingestion."""

    index: dataset.DatasetIndex
    skipped: dict[str, int]  # {reason: number of items}
    listing: Path  # lists the skipped items


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
    """Reads the dataset `name` of images and text from the folder `source`; writes its records at `path`.

    `images` are folders, searched in order (none: `source`, and `source`/images if it exists), from which
    `workers` threads prefetch. `limit` is of records, `budget` of skipped items; `progress` is called after
    each record with both numbers. If files are missing or not as expected, nothing could be read, or more was
    skipped than the budget allows, an error says so, and only the list of skipped items is written.
    """
    entry, split = catalog.find(name, split)
    if entry.spoken:
        raise ValueError(
            f"{name}: has speech; use mvjax data encode EXP.py {source} --dataset {name}"
        )
    sources.check_folders(images)
    home = source if source.is_dir() else source.parent
    folders = list(images) or [path for path in (home, home / "images") if path.is_dir()]
    listing = items.bad_records(path)
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
