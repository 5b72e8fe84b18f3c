"""Written dialogues as records without speech: for training from text and pictures alone."""

from __future__ import annotations

from pathlib import Path

from mvjax.data.ingest import items, write
from mvjax.data.records import dataset
from mvjax.dialogues import store


def pack(source: Path, path: Path, *, budget: int | None = None) -> write.IngestSummary:
    """Writes the records of a file of dialogues (as `store.read`) at `path`, with their pictures.

    What cannot be used is left out, at most `budget` dialogues, and listed beside the records.

    Raises:
      ValueError: if nothing can be used, or more is left out than the budget allows.
    """
    listing = items.bad_records(path)
    count = 0
    with (
        dataset.RecordWriter(path, dataset.Identity()) as writer,
        items.SkippedItems(listing, budget=budget) as skips,
    ):
        read = store.read(source, bad=lambda place, why: skips.add(place, "damaged dialogue", why))
        for dialogue in read:
            picture = source.parent / dialogue.image if dialogue.image else None
            try:
                image = items.load_image(picture) if picture else None
                writer.add(
                    dataset.Record(
                        dialogue.id, dialogue.kinds, dialogue.turns, dialogue.facts, image=image
                    )
                )
            except FileNotFoundError as error:
                skips.add(dialogue.id, "missing image", error)
            except ValueError as error:
                skips.add(dialogue.id, "refused dialogue", error)
            else:
                count += 1
        if not count:
            skips.refuse_nothing_read(source)
    return write.IngestSummary(writer.index, dict(skips.counts), listing)
