"""The index of a dataset, NAME.json: its shards with their hashes, and the codec; NAME.ids finds an id."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import UInt64

from mvjax import files, messages
from mvjax.config import schema
from mvjax.data.records import shards
from mvjax.stores import staging
from mvjax.weights import safetensors_io

FORMAT, VERSION = "mvjax records", 2
ENCODES_AS = (
    "mvjax.encodes_as"  # of a codec's metadata: SHA-256 of a codec that makes the same codes
)
_NAME = re.compile(r"[\w-]+", re.ASCII)


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SHA-256 of the codec and tokenizer files that records were made with; None: made without."""

    codec: str | None = None
    tokenizer: str | None = None


class DatasetIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of NAME.json."""

    format: str = FORMAT
    version: int = VERSION
    count: int  # of records
    identity: Identity
    records: tuple[shards.Shard, ...]  # in the order of their numbers
    images: tuple[shards.Shard, ...]
    ids_sha256: str  # of NAME.ids


class NoSuchId(ValueError):
    """No record has the id that was asked for."""


class _Header(msgspec.Struct):
    format: str = ""
    version: int = 0


def check_name(dataset: Path) -> None:
    """Raises ValueError if a dataset is not ROOT/NAME without a suffix."""
    if not _NAME.fullmatch(dataset.name):
        raise ValueError(
            f"{dataset}: expected a dataset as ROOT/NAME, NAME of letters, digits, _ and -, "
            "without a suffix: the files are ROOT/NAME.json and what it lists"
        )


def path(dataset: Path) -> Path:
    """ROOT/NAME.json."""
    return dataset.with_name(f"{dataset.name}.json")


def images_stem(dataset: Path) -> Path:
    """ROOT/NAME.images: the stem of the image shards."""
    return dataset.with_name(f"{dataset.name}.images")


def ids_path(dataset: Path) -> Path:
    """ROOT/NAME.ids: hash and number of each record, sorted by hash; uint64 [2, count]."""
    return dataset.with_name(f"{dataset.name}.ids")


def ids_draft(dataset: Path) -> Path:
    """Where NAME.ids is written before it replaces an earlier one."""
    return dataset.with_name(f"{dataset.name}.ids{files.DRAFT}")


def datasets(root: Path) -> list[Path]:
    """ROOT/NAME of every index in a folder, sorted, damaged ones too; no other JSON, such as transcripts."""
    named = (file.with_suffix("") for file in root.glob("*.json"))
    return sorted(found for found in named if _NAME.fullmatch(found.name) and _may_be_index(found))


def _may_be_index(dataset: Path) -> bool:
    if ids_path(dataset).exists():
        return True
    try:
        return msgspec.json.decode(path(dataset).read_bytes(), type=_Header).format != ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError):
        return True


def read(dataset: Path) -> DatasetIndex:
    """Reads NAME.json alone; ValueError if it is no index, of another version, or contradicts itself."""
    check_name(dataset)
    beside = staging.here(path(dataset))
    if not beside.is_file():
        raise FileNotFoundError(f"{beside}: no such file; it is the index of a dataset of records")
    content = beside.read_bytes()
    try:
        header = msgspec.json.decode(content, type=_Header)
        if (header.format, header.version) != (FORMAT, VERSION):
            raise ValueError(
                f"{beside}: expected {FORMAT!r} version {VERSION}, got {header.format!r} version "
                f"{header.version}; make the records again"
            )
        index = msgspec.json.decode(content, type=DatasetIndex)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{beside}: expected an index of records: {error}") from error
    total = sum(shard.count for shard in index.records)
    if total != index.count:
        wanted = messages.counted(index.count, "record")
        raise ValueError(f"{beside}: expected {wanted}, its shards hold {total}")
    return index


def write(dataset: Path, index: DatasetIndex) -> None:
    """Writes NAME.json; it appears whole or not at all."""
    files.write_atomic(path(dataset), msgspec.json.format(msgspec.json.encode(index), indent=1))


def identity(frozen: schema.FrozenFiles) -> Identity:
    """Hashes the codec and the tokenizer of a run.

    A codec whose decoder alone was trained further makes the same codes: it goes by the hash that it names as
    `ENCODES_AS`, and records stay valid.
    """
    codec = files.resolve(frozen.codec)
    named = safetensors_io.metadata(codec) if codec.suffix == ".safetensors" else {}
    return Identity(
        codec=named.get(ENCODES_AS) or files.file_hash(codec),
        tokenizer=files.file_hash(files.resolve(frozen.tokenizer)),
    )


def check_identity(dataset: Path, made_with: Identity, expected: Identity) -> None:
    """Compares the hashes that both sides have; raises ValueError naming what differs."""
    pairs = ((n, getattr(made_with, n), getattr(expected, n)) for n in Identity.__struct_fields__)
    parts = [
        f"{name} {theirs[:12]}, this run has {ours[:12]}"
        for name, theirs, ours in pairs
        if theirs is not None and ours is not None and theirs != ours
    ]
    if parts:
        raise ValueError(
            f"{dataset}: made with {' and '.join(parts)}; make the records again with this run's files"
        )


def hash_id(id: str) -> int:
    """64 bits of a record's id."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


def id_table(hashes: UInt64[np.ndarray, " count"]) -> UInt64[np.ndarray, "2 count"]:
    """The content of NAME.ids, from the hashes of all ids in order."""
    order = np.argsort(hashes, kind="stable")
    return np.stack([hashes[order], order.astype(np.uint64)])


def write_ids(dataset: Path, hashes: UInt64[np.ndarray, " count"]) -> str:
    """Writes the draft of NAME.ids and returns its SHA-256."""
    id_table(hashes).astype("<u8").tofile(ids_draft(dataset))
    return files.file_hash(ids_draft(dataset))


def read_ids(dataset: Path, count: int) -> UInt64[np.ndarray, "2 count"]:
    """Opens NAME.ids as a memory map; ValueError if its size is not that of `count` records."""
    file = staging.here(ids_path(dataset))
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; it says where each id is")
    if file.stat().st_size != 16 * count:
        raise ValueError(
            f"{file}: expected {16 * count} bytes for {messages.counted(count, 'record')}, got"
            f" {file.stat().st_size}; the file is truncated or another dataset's:"
            " copy or make the records again"
        )
    if count == 0:
        return np.zeros((2, 0), np.uint64)
    return np.memmap(file, "<u8", "r", shape=(2, count))


def wrong_hashes(dataset: Path, index: DatasetIndex) -> list[str]:
    """The files whose SHA-256 differs from the index, with that as a problem."""
    wrong = shards.wrong_hashes(dataset, index.records)
    wrong += shards.wrong_hashes(images_stem(dataset), index.images)
    if files.file_hash(staging.here(ids_path(dataset))) != index.ids_sha256:
        wrong.append(f"{ids_path(dataset)}: its SHA-256 is not the one in {path(dataset).name}")
    return wrong
