"""PixelProse: captions by a vision-language model, one record each.

Published on huggingface.co as tomg-group-umd/pixelprose: `data/vlm_captions_PART_NN.parquet` with PART one
of cc12m, commonpool, redcaps, of whose columns `uid`, `url`, `status` and `vlm_caption` are used; the images
are to be downloaded, for example with img2dataset (`by_url` tells the layouts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mvjax.data.ingest import by_url, items, sources, templates


class _PixelProseRow(msgspec.Struct):
    uid: str
    url: str | None
    status: str | None
    vlm_caption: str | None


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[items.Item]:
    """Yields the captions of a part, or of all ("train", as the hub calls it)."""
    part = "*" if split == "train" else f"{split}_*"
    pattern = f"vlm_captions_{part}.parquet"
    paths = sources.the_files(source, f"data/{pattern}", pattern)
    pictures = by_url.Images(images, skips)
    for _, row in sources.parquet_rows(paths, _PixelProseRow, skips):
        name = f"pixelprose-{row.uid}"
        if not row.vlm_caption or not row.vlm_caption.strip() or not row.url:
            skips.add(name, "empty caption", f"status {row.status!r}")
            continue
        turns = templates.caption(name, row.vlm_caption)
        yield items.Item(name, pictures.find(row.url), turns, ("caption",), {"image_url": row.url})
