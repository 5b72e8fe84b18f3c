"""Everything that is wrong in a folder of datasets: what `mvjax data validate` lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from mvjax.config import schema
from mvjax.data.records import dataset, index, record, shards


def datasets(root: Path) -> list[Path]:
    """ROOT/NAME of every dataset in a folder.

    Raises:
      FileNotFoundError: if there is no such folder, or no index of a dataset in it.
    """
    found = index.datasets(root)
    if not found:
        fact = (
            f"it holds {sorted(p.name for p in root.iterdir())[:10]}" if root.is_dir() else "none"
        )
        raise FileNotFoundError(f"{root}: expected a folder of datasets (NAME.json), got {fact}")
    return found


def validate(
    root: Path, limits: schema.LimitsConfig = record.LIMITS
) -> Iterator[tuple[Path, list[str]]]:
    """Each dataset and its problems, then image features, then files in the folder that belong to none."""
    listed = datasets(root)
    owned: set[Path] = set()
    for path in listed:
        yield path, dataset.verify(path, limits)
        owned |= shards.present(path) | shards.present(index.images_stem(path))
        owned.add(index.ids_path(path))
    for file in sorted(root.glob("*.features.json")):
        stem = file.with_suffix("")
        yield stem, _wrong_features(file, stem)
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
    found = dataset.RecordReader(path, expected=None).index
    size = sum(shard.bytes for shard in (*found.records, *found.images))
    pictures = sum(shard.count for shard in found.images)
    return (
        f"{path.name}: {found.count} records, {pictures} images, {size / 1e6:.1f} MB in "
        f"{len(found.records) + len(found.images)} shards"
    )


def find(root: Path, id: str, *, name: str | None = None) -> dataset.Record:
    """The record with an id, in one dataset or in any.

    Raises:
      ValueError: if there is none, or several datasets have one and `name` is None.
    """
    found = []
    for path in datasets(root) if name is None else [root / name]:
        reader = dataset.RecordReader(path, expected=None)
        try:
            found.append((path.name, reader[reader.find(id)]))
        except index.NoSuchId:
            continue
    if not found:
        raise ValueError(f"{root}: expected a record with id {id!r} in {name or 'any dataset'}")
    if len(found) > 1:
        names = [where for where, _ in found]
        raise ValueError(f"{root}: id {id!r} is in {names}; say which with --name")
    return found[0][1]


class _Features(msgspec.Struct):
    features: tuple[shards.Shard, ...]


def _wrong_features(file: Path, stem: Path) -> list[str]:
    """Compares features with their index; whether they fit a run, the run says."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_Features).features
        shards.ShardReader(stem, found)
    except msgspec.MsgspecError as error:
        return [f"{file}: expected an index of features: {error}"]
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    return shards.wrong_hashes(stem, found)
