"""`mvjax data ingest`: makes records of a published dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mvjax import messages
from mvjax.commands import arguments, spinner
from mvjax.data.ingest import catalog
from mvjax.stores import places

if TYPE_CHECKING:
    from mvjax.data.ingest import write


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "ingest", ingest, "make records of a published dataset of images and text",
        "mvjax data ingest coco karpathy/ --images coco/ --split train --out data/vision")  # fmt: skip
    names = [name for name, dataset in catalog.DATASETS.items() if not dataset.spoken]
    arg("name", metavar="DATASET", help=f"one of {', '.join(names)}")
    arg("source", type=Path, metavar="SOURCE", help="folder with the dataset's files as published")
    arg("--out", type=arguments.place, required=True, metavar="ROOT",
        help="folder of records; gs:// and s3:// too")  # fmt: skip
    arg("--name", dest="called", metavar="NAME",
        help="name of the dataset of records (DATASET-SPLIT)")  # fmt: skip
    arg("--split", help="split of the dataset (the first)")
    arg(
        "--images", type=Path, action="append", default=[], metavar="DIR",
        help="folder with the images; may be repeated, searched in order (SOURCE, SOURCE/images)",
    )  # fmt: skip
    arg("--limit", type=int, metavar="N", help="stop after N records")
    arg("--max-skipped", type=int, metavar="N",
        help="stop when more than N items are skipped (no limit)")  # fmt: skip
    arg("--workers", type=int, default=4, metavar="N",
        help="threads that prefetch images (%(default)s)")  # fmt: skip
    arg("--list", action=arguments.Listing, const=_datasets,
        help="print the datasets: their splits, files and image folders")  # fmt: skip


def ingest(args: argparse.Namespace) -> int:
    """Writes the records and prints what was skipped."""
    from mvjax.data.ingest import write
    from mvjax.data.records import publishing

    split = catalog.find(args.name, args.split)[1]
    dataset = args.out / (args.called or f"{args.name}-{split}")
    shown = places.named(dataset)
    with publishing.published(args.out), spinner.shown(f"{shown}: opening") as tell:
        summary = write.write_text(
            args.name, args.source, dataset, split=split, images=args.images, limit=args.limit,
            workers=args.workers, budget=args.max_skipped,
            progress=lambda written, skipped: tell(
                f"{shown}: {messages.counted(written, 'record')}, {skipped} skipped"
            ),
        )  # fmt: skip
    report(dataset, summary)
    return 0


def report(dataset: Path, summary: write.IngestSummary) -> None:
    """Prints what was written and what was skipped."""
    images = sum(shard.count for shard in summary.index.images)
    total = sum(shard.bytes for shard in (*summary.index.records, *summary.index.images))
    counts = (
        f"{messages.counted(summary.index.count, 'record')}, {messages.counted(images, 'image')}"
    )
    print(f"{places.named(dataset)}: {counts}, {total / 1e6:.1f} MB")
    if summary.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.skipped.items())
        print(f"skipped: {reasons}; listed in {places.named(summary.listing)}")


def _datasets() -> str:
    return "\n".join(
        f"{name}: {dataset.summary}\n  splits  {', '.join(dataset.splits)}\n"
        f"  SOURCE  {dataset.source}\n  images  {dataset.images or 'in those files'}"
        for name, dataset in catalog.DATASETS.items()
        if not dataset.spoken
    )
