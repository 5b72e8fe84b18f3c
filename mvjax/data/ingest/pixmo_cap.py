"""PixMo-Cap: long human captions, one record each.

Published on huggingface.co as allenai/pixmo-cap: `data/train-*.parquet` with the columns `image_url`,
`caption` and `transcripts` (what the annotators said); the images are to be downloaded (`by_url` tells the
layouts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mvjax.data.ingest import by_url, items, sources, templates


class _PixmoRow(msgspec.Struct):
    image_url: str | None
    caption: str | None


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[items.Item]:
    """Yields the captions; URLs repeat, so the id is the file and the row."""
    paths = sources.the_files(source, f"data/{split}-*.parquet", f"{split}-*.parquet")
    pictures = by_url.Images(images, skips)
    for place, row in sources.parquet_rows(paths, _PixmoRow, skips):
        name = f"pixmo-cap-{place.replace('.parquet:', '-')}"
        if not row.caption or not row.caption.strip() or not row.image_url:
            skips.add(name, "empty caption", row.image_url)
            continue
        turns, facts = templates.caption(name, row.caption), {"image_url": row.image_url}
        yield items.Item(name, pictures.find(row.image_url), turns, ("caption",), facts)
