"""Finds downloaded images that a dataset names only by URL, in a folder of either layout.

FOLDER/SHA256[.EXT]       SHA-256 of the URL in hex, as in Molmo's image store, or FOLDER/AB/ABCD...
FOLDER/00012/000120034.jpg, FOLDER/00012.parquet
img2dataset with output_format=files: its tables tell `url` and `key`
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mvjax.data.ingest import items, sources


class _Downloaded(msgspec.Struct):
    url: str
    key: str
    status: str


class Images:
    """Finds the file of a URL in folders, in order; damaged tables of img2dataset are skipped."""

    def __init__(self, folders: Sequence[Path], skips: items.SkippedItems):
        self._plain = [folder for folder in folders if not _tables(folder)]
        self._downloaded: dict[bytes, tuple[Path, str]] = {}  # digest of the URL -> folder and key
        for folder in folders:
            for _, row in sources.parquet_rows(_tables(folder), _Downloaded, skips):
                if row.status == "success":
                    self._downloaded.setdefault(_digest(row.url), (folder, row.key))

    def find(self, url: str) -> Path:
        """The image's file; if there is none, the path that it should have."""
        if _digest(url) in self._downloaded:
            folder, key = self._downloaded[_digest(url)]
            return sources.find_image([folder / key[:5]], key, suffixes=sources.IMAGE_SUFFIXES)
        name = _digest(url).hex()
        if not self._plain:
            return Path(f"(not downloaded by img2dataset) {url[:200]}")
        folders = [f for folder in self._plain for f in (folder, folder / name[:2])]
        return sources.find_image(folders, name, suffixes=sources.IMAGE_SUFFIXES)


def _tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if path.stem.isdigit())


def _digest(url: str) -> bytes:
    return hashlib.sha256(url.encode()).digest()
