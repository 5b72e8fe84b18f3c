"""Finds datasets and records in a folder, and everything that is wrong with them (`mvjax data validate`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mvjax.config import schema
from mvjax.data import image_features
from mvjax.data.records import dataset, index, record, shards


def datasets(root: Path) -> list[Path]:
    """ROOT/NAME of every dataset in a folder.

    Raises:
      FileNotFoundError: if there is no such folder, or no index of a dataset in it.
    """
    listed = index.datasets(root)
    if not listed:
        fact = (
            f"it holds {sorted(p.name for p in root.iterdir())[:10]}" if root.is_dir() else "none"
        )
        raise FileNotFoundError(f"{root}: expected a folder of datasets (NAME.json), got {fact}")
    return listed


def validate(
    root: Path, limits: schema.LimitsConfig = record.LIMITS
) -> Iterator[tuple[Path, list[str]]]:
    """Yields (place, problems): each dataset, its image features, then files that belong to no dataset."""
    listed = datasets(root)
    owned: set[Path] = set()
    for path in listed:
        yield path, dataset.verify(path, limits)
        owned |= shards.present(path) | shards.present(index.images_stem(path))
        owned.add(index.ids_path(path))
    for file in sorted(root.glob("*.features.json")):
        stem = file.with_suffix("")
        yield stem, _wrong_features(stem)
        owned |= shards.present(stem)
    files = {file for pattern in ("*.array_record", "*.ids") for file in root.glob(pattern)}
    drafts = set(root.glob("*.part"))
    yield (
        root,
        [
            f"{file}: belongs to no index, its writing was interrupted or its index is gone; remove it"
            for file in sorted((files - owned) | drafts)
        ],
    )


def summary(path: Path) -> str:
    """One line on a dataset, or on its image features, that can be opened."""
    if path.suffix:
        return path.name
    listing = dataset.RecordReader(path, expected=None).index
    size = sum(shard.bytes for shard in (*listing.records, *listing.images))
    pictures = sum(shard.count for shard in listing.images)
    return (
        f"{path.name}: {listing.count} records, {pictures} images, {size / 1e6:.1f} MB in "
        f"{len(listing.records) + len(listing.images)} shards"
    )


def find(root: Path, id: str, *, name: str | None = None) -> dataset.Record:
    """The record with an id, in one dataset or in any.

    Raises:
      ValueError: if there is none, or several datasets have one and `name` is None.
    """
    matches = []
    for path in datasets(root) if name is None else [root / name]:
        reader = dataset.RecordReader(path, expected=None)
        try:
            matches.append((path.name, reader[reader.find(id)]))
        except index.NoSuchId:
            continue
    if not matches:
        raise ValueError(f"{root}: expected a record with id {id!r} in {name or 'any dataset'}")
    if len(matches) > 1:
        names = [where for where, _ in matches]
        raise ValueError(f"{root}: id {id!r} is in {names}; say which with --name")
    return matches[0][1]


def _wrong_features(stem: Path) -> list[str]:
    """Checks ROOT/NAME.features against its index and its dataset; whether it fits a run, the run says."""
    try:
        reader = image_features.FeatureReader(stem.with_suffix(""), expected=None)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    return shards.wrong_hashes(stem, reader.index.features)
