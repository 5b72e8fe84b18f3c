"""A dataset of records on disk: records in ArrayRecord shards, each image stored once, an index NAME.json.

    with dataset.RecordWriter(root / "name", dataset.Identity(codec=..., tokenizer=...)) as writer:
        writer.add(dataset.Record(...))
    dataset.RecordReader(root / "name", expected=None)[0]

The index holds the hashes of codec and tokenizer: codes made with another codec than the run's are refused.
An invalid record is refused, on writing as on reading. Other rooms use this module for all about records.
"""

from __future__ import annotations

import array
import functools
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent import futures
from pathlib import Path

import msgspec
import numpy as np

from mvjax import messages
from mvjax.config import schema
from mvjax.data import images
from mvjax.data.records import index as index_lib
from mvjax.data.records import record as record_lib
from mvjax.data.records import shards

Turn = record_lib.Turn
Word = record_lib.Word
Record = record_lib.Record
StoredRecord = record_lib.StoredRecord
encode_codes = record_lib.encode_codes
LIMITS = record_lib.LIMITS
Identity = index_lib.Identity
DatasetIndex = index_lib.DatasetIndex
identity = index_lib.identity
index_path = index_lib.path

SHARD_BYTES = 4 * 2**30  # of content; a dataset of 1 TB is 250 open files

_THREADS, _QUEUED = 4, 256  # that decode images to verify them; images queued for them


class RecordWriter:
    """Writes ROOT/NAME record by record, in constant memory; the files appear when the block ends.

    If the block raises, or no record was added, which raises ValueError, no new file is left, and an earlier
    dataset of that name stays as it was. An image that several records have is stored once. A dataset
    without codes is made with `Identity()`.
    """

    index: DatasetIndex  # once the block has ended

    def __init__(
        self,
        path: Path,
        made_with: Identity,
        *,
        limits: schema.LimitsConfig = LIMITS,
        shard_bytes: int = SHARD_BYTES,
    ):
        index_lib.check_name(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise OSError(f"{path}: expected a writable folder; choose another data.root")
        self._path, self._made_with, self._limits = path, made_with, limits
        self._hashes = array.array("Q")
        self._rows = shards.ShardWriter(path, shard_bytes=shard_bytes, compressed=True)
        stem = index_lib.images_stem(path)
        self._images = shards.ShardWriter(stem, shard_bytes=shard_bytes, compressed=False)
        # Private, in memory until it is large, then in a temporary file.
        self._seen = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._seen.execute("CREATE TABLE images (hash BLOB PRIMARY KEY, n INT) WITHOUT ROWID")

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            self._seen.close()
            self._rows.discard()
            self._images.discard()
            index_lib.ids_draft(self._path).unlink(missing_ok=True)

    def add(self, record: Record) -> None:
        """Writes one record, or raises ValueError naming all its problems; others may follow."""
        place = f"{self._path} record {len(self._hashes)} ({record.id!r})"
        try:
            row = record_lib.decode(record_lib.encode(record, None), self._limits)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        wrong = record_lib.problems(row, self._limits)
        key = None if record.image is None else hashlib.sha256(record.image).digest()
        known = self._seen.execute("SELECT n FROM images WHERE hash = ?", (key,)).fetchone()
        if record.image is not None and not known:
            wrong += images.problems(record.image, self._limits)
        if record.codes and self._made_with.codec is None:
            wrong.append("codes: expected the identity of their codec in made_with, got None")
        if self._seen.execute("SELECT 1 FROM ids WHERE id = ?", (record.id,)).fetchone():
            wrong.append(f"id {record.id!r} used twice")
        if wrong:
            raise ValueError(f"{place}: {messages.names(wrong, between='; ')}")
        self._seen.execute("INSERT INTO ids VALUES (?)", (record.id,))
        number = known[0] if known else None
        if record.image is not None and number is None:
            number = self._images.write(record.image)
            self._seen.execute("INSERT INTO images VALUES (?, ?)", (key, number))
        self._rows.write(record_lib.encode(record, number))
        self._hashes.append(index_lib.hash_id(record.id))

    def _publish(self) -> None:
        """Writes all that is large, removes the old index, puts new files in place, writes the new index."""
        if not self._hashes:
            raise ValueError(
                f"{self._path}: expected at least one record, got none; nothing is written"
            )
        self._rows.close()
        self._images.close()
        ids_sha256 = index_lib.write_ids(self._path, np.array(self._hashes, np.uint64))
        index_path(self._path).unlink(missing_ok=True)
        index_lib.ids_draft(self._path).replace(index_lib.ids_path(self._path))
        self.index = DatasetIndex(
            count=len(self._hashes),
            identity=self._made_with,
            records=self._rows.publish(),
            images=self._images.publish(),
            ids_sha256=ids_sha256,
        )
        index_lib.write(self._path, self.index)


def write(
    path: Path, items: Iterable[Record], made_with: Identity, *, shard_bytes: int = SHARD_BYTES
) -> DatasetIndex:
    """Writes a whole dataset as `RecordWriter` does; at the first invalid record, nothing."""
    with RecordWriter(path, made_with, shard_bytes=shard_bytes) as writer:
        for record in items:
            writer.add(record)
    return writer.index


class RecordReader:
    """Random access to a dataset ROOT/NAME; opening it reads the index alone.

    Raises FileNotFoundError if a file is missing, and ValueError if files and index disagree or the records
    were made with another codec or tokenizer than `expected`, the run's (None: open any).
    """

    def __init__(
        self, path: Path, *, expected: Identity | None, limits: schema.LimitsConfig = LIMITS
    ):
        self.path, self.limits, self._expected = path, limits, expected
        self.index = index_lib.read(path)
        if expected is not None:
            index_lib.check_identity(path, self.index.identity, expected)
        self._rows = shards.ShardReader(path, self.index.records)
        self._images = shards.ShardReader(index_lib.images_stem(path), self.index.images)
        self.ids = index_lib.read_ids(path, self.index.count)

    def __reduce__(self):
        reopen = functools.partial(RecordReader, expected=self._expected, limits=self.limits)
        return reopen, (self.path,)

    def __len__(self) -> int:
        return self.index.count

    def __getitem__(self, i: int) -> Record:
        """Reads and validates one record with its image; raises as `stored` and `image` do."""
        row = self.stored(i)
        fields = msgspec.structs.asdict(row)
        fields["image"] = None if row.image is None else self.image(row.image)
        return Record(**fields)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def stored(self, i: int) -> StoredRecord:
        """Reads and validates one record without its image; a ValueError names its number and its id."""
        place = f"{self.path} record {i}"
        if not 0 <= i < len(self):
            raise IndexError(f"{place}: expected 0 <= number < {len(self)}")
        try:
            row = record_lib.decode(self._rows[i], self.limits)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        wrong = record_lib.problems(row, self.limits)
        if row.image is not None and not 0 <= row.image < len(self._images):
            wrong.append(f"image: expected a number below {len(self._images)}, got {row.image}")
        if wrong:
            raise ValueError(f"{place} ({row.id!r}): {messages.names(wrong, between='; ')}")
        return row

    def image(self, number: int) -> bytes:
        """An encoded image by its number, `StoredRecord.image`."""
        try:
            return self._images[number]
        except ValueError as error:
            raise ValueError(f"{self.path} image {number}: {error}") from error

    def find(self, id: str) -> int:
        """The number of the record with an id, by binary search; NoSuchId if there is none."""
        wanted = np.uint64(index_lib.hash_id(id))
        first, end = (np.searchsorted(self.ids[0], wanted, side) for side in ("left", "right"))
        for number in self.ids[1, first:end].tolist():
            if number < len(self) and self.stored(number).id == id:
                return number
        raise index_lib.NoSuchId(f"{self.path}: expected a record with id {id!r}, there is none")


def verify(path: Path, limits: schema.LimitsConfig = LIMITS) -> list[str]:
    """All problems of a dataset's hashes, records, images and ids; reads it whole."""
    try:
        reader = RecordReader(path, expected=None, limits=limits)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    wrong = index_lib.wrong_hashes(path, reader.index)
    hashes = []
    for i in range(len(reader)):
        try:
            hashes.append(index_lib.hash_id(reader.stored(i).id))
        except ValueError as error:
            wrong.append(str(error))
    table = index_lib.id_table(np.array(hashes, np.uint64))
    if len(hashes) == len(reader) and not np.array_equal(reader.ids, table):
        ids = index_lib.ids_path(path)
        wrong.append(f"{ids}: does not lead to the ids of its records; make them again")
    return wrong + _wrong_images(reader)


def _wrong_images(reader: RecordReader) -> list[str]:
    """Decodes all images, in threads."""

    def check(number: int) -> str | None:
        try:
            images.decode(reader.image(number), limits=reader.limits)
        except ValueError as error:
            return f"{reader.path} image {number}: {error}"
        return None

    wrong: list[str] = []
    total = sum(shard.count for shard in reader.index.images)
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, total, _QUEUED):
            numbers = range(first, min(first + _QUEUED, total))
            wrong += [problem for problem in pool.map(check, numbers) if problem]
    return wrong
