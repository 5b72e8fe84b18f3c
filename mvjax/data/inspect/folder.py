"""Finds datasets and records in a folder, and everything that is wrong with them (`mvjax data validate`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mvjax import messages
from mvjax.data import image_features
from mvjax.data.records import dataset, index, shards


def datasets(root: Path) -> list[Path]:
    """ROOT/NAME of every dataset in a folder; FileNotFoundError if there is none."""
    listed = index.datasets(root)
    if not listed:
        held = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        holds = f"a folder that holds {messages.names(held)}" if root.is_dir() else "none"
        raise FileNotFoundError(f"{root}: expected a folder of datasets (NAME.json), got {holds}")
    return listed


def validate(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields (place, problems): each dataset, its image features, then files that belong to no dataset."""
    owned: set[Path] = set()
    for path in datasets(root):
        yield path, dataset.verify(path)
        owned |= shards.present(path) | shards.present(index.images_stem(path))
        owned.add(index.ids_path(path))
    for file in sorted(root.glob("*.features.json")):
        stem = file.with_suffix("")
        yield stem, _wrong_features(stem)
        owned |= shards.present(stem)
    files = {*root.glob("*.array_record"), *root.glob("*.ids")}
    strange = [
        f"{file}: belongs to no index, its writing was interrupted or its index is gone; remove it"
        for file in sorted((files - owned) | set(root.glob("*.part")))
    ]
    yield root, strange


def summary(path: Path) -> str:
    """One line on a dataset, or on its image features, that can be opened."""
    if path.suffix:
        return path.name
    listing = dataset.RecordReader(path, expected=None).index
    size = sum(shard.bytes for shard in (*listing.records, *listing.images))
    pictures = sum(shard.count for shard in listing.images)
    return (
        f"{path.name}: {messages.counted(listing.count, 'record')},"
        f" {messages.counted(pictures, 'image')}, {size / 1e6:.1f} MB in"
        f" {messages.counted(len(listing.records) + len(listing.images), 'shard')}"
    )


def find(root: Path, id: str, *, name: str | None = None) -> dataset.Record:
    """The record with an id, in one dataset or in any; raises ValueError if there are none or several."""
    matches: dict[str, dataset.Record] = {}
    closed: list[str] = []
    for path in datasets(root) if name is None else [root / name]:
        try:
            reader = dataset.RecordReader(path, expected=None)
        except (ValueError, FileNotFoundError) as error:
            closed.append(str(error))
            continue
        with contextlib.suppress(index.NoSuchId):
            matches[path.name] = reader[reader.find(id)]
    if not matches:
        raise ValueError(
            f"{root}: expected a record with id {id!r} in {name or 'any dataset'}, there is none"
            + (f"; not opened:{messages.lines(closed)}" if closed else "")
        )
    if len(matches) > 1:
        raise ValueError(f"{root}: id {id!r} is in {list(matches)}; say which with --name")
    return matches.popitem()[1]


def _wrong_features(stem: Path) -> list[str]:
    """Checks ROOT/NAME.features against index and dataset; whether it fits a run, the run says."""
    try:
        reader = image_features.FeatureReader(stem.with_suffix(""), expected=None)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    return shards.wrong_hashes(stem, reader.index.features)
