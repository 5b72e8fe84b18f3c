"""Shards: byte strings in ArrayRecord files NAME-00000-of-00002.array_record, read by number."""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from mvjax import files as files_lib
from mvjax import messages
from mvjax.stores import places, staging

SUFFIX, _DRAFT = ".array_record", ".part"
# One entry a chunk, for random access.
_WRITER = {"compressed": "group_size:1", "plain": "group_size:1,uncompressed"}
_READER = "readahead_buffer_size:0,max_parallelism:0"  # reads are random
_READER_BUFFER = 1 << 16  # bytes; entries are some KB

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a dataset, as its index describes it."""

    count: _Count
    bytes: _Count
    sha256: str


def paths(stem: Path, total: int) -> list[Path]:
    """The files of a dataset with `total` shards."""
    return [stem.with_name(f"{stem.name}-{n:05d}-of-{total:05d}{SUFFIX}") for n in range(total)]


def present(stem: Path) -> set[Path]:
    """All shards and drafts of shards with this stem, also of an earlier writing."""
    return {file for file in stem.parent.iterdir() if is_shard(file.name, stem.name)}


def is_shard(name: str, stem: str) -> bool:
    """Whether a file, by its name, is a shard or a draft of one with this stem."""
    return bool(re.fullmatch(rf"{re.escape(stem)}-\d{{5}}(-of-\d{{5}})?{SUFFIX}({_DRAFT})?", name))


def wrong_hashes(stem: Path, expected: Sequence[Shard]) -> list[str]:
    """The shards whose SHA-256 differs from the index, with that as a problem."""
    return [
        f"{path}: its SHA-256 is not the one in its index; copy it or make it again"
        for path, shard in zip(paths(stem, len(expected)), expected, strict=True)
        if files_lib.file_hash(staging.here(path)) != shard.sha256
    ]


class ShardWriter:
    """Appends entries to drafts of shards of ROOT/NAME, the stem; `publish` gives them their names.

    A shard is closed once its entries exceed `shard_bytes`.
    """

    def __init__(self, stem: Path, *, shard_bytes: int, compressed: bool):
        self._stem, self._shard_bytes = stem, shard_bytes
        self._options = _WRITER["compressed" if compressed else "plain"]
        self._closed: list[Shard] = []
        self._before = self._count = self._bytes = 0  # entries of closed shards; of the open one
        self._writer = None

    def write(self, entry: bytes) -> int:
        """Appends one entry and returns its number."""
        if self._writer is None:
            draft = self._draft(len(self._closed))
            self._writer = array_record_module.ArrayRecordWriter(str(draft), self._options)
        self._writer.write(entry)
        self._count += 1
        self._bytes += len(entry)
        number = self._before + self._count - 1
        if self._bytes > self._shard_bytes:
            self.close()
        return number

    def close(self) -> None:
        """Ends the open shard, if there is one; raises OSError if it does not hold what was written."""
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        draft = self._draft(len(self._closed))
        written = _open(draft).num_records()
        if written != self._count:
            raise OSError(
                f"{draft}: expected {messages.counted(self._count, 'entry', 'entries')}, wrote {written};"
                " is the disk full?"
            )
        self._closed.append(Shard(written, draft.stat().st_size, files_lib.file_hash(draft)))
        self._before += self._count
        self._count = self._bytes = 0

    def publish(self) -> tuple[Shard, ...]:
        """Renames the closed drafts to their final names; removes files of an earlier writing."""
        made = paths(self._stem, len(self._closed))
        for number, path in enumerate(made):
            self._draft(number).replace(path)
        for file in present(self._stem) - set(made):
            file.unlink()
        return tuple(self._closed)

    def discard(self) -> None:
        """Removes the drafts."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for number in range(len(self._closed) + 1):
            self._draft(number).unlink(missing_ok=True)

    def _draft(self, number: int) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{number:05d}{SUFFIX}{_DRAFT}")


class ShardReader:
    """Random access to the entries of all shards; each shard is opened on first use.

    Of a store, each is copied here on first use, verified by its SHA-256. Elsewhere, raises FileNotFoundError
    or ValueError, listing the shards that are missing or have another size than the index says.
    """

    def __init__(self, stem: Path, shards: Sequence[Shard]):
        self.paths = files = paths(stem, len(shards))
        self._ends = list(itertools.accumulate(shard.count for shard in shards))
        self._starts = [0, *self._ends]
        self._open = functools.cache(lambda n: _opened(files[n], shards[n]))
        if places.url(stem) is not None:
            return
        missing = [str(path) for path in self.paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{stem}: expected files that are not there: {messages.names(missing)}"
            )
        wrong = [
            f"{path}: expected {shard.bytes} bytes by the index, got {size}"
            for path, shard in zip(self.paths, shards, strict=True)
            if (size := path.stat().st_size) != shard.bytes
        ]
        if wrong:
            raise ValueError(
                messages.names(wrong, between="; ")
                + "; truncated, or not the index's own: copy or make them again"
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> bytes:
        """Reads one entry; raises ValueError if the shard is damaged there."""
        if not 0 <= number < len(self):
            raise IndexError(f"expected 0 <= number < {len(self)}, got {number}")
        n = bisect.bisect_right(self._ends, number)
        place = number - self._starts[n]
        try:
            # Not read([place]): that takes time in proportion to the shard's length.
            opened = self._open(n)
            if isinstance(opened, ValueError):
                raise opened
            return opened.read(place, place + 1)[0]
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{self.paths[n]} entry {place}: {error}") from error


def _opened(path: Path, shard: Shard):
    """Returns the reader of a shard, or the ValueError: a bad copy is not fetched again for each entry."""
    try:
        return _open_whole(staging.here(path, sha256=shard.sha256), shard.count)
    except ValueError as error:
        return error


def _open_whole(path: Path, count: int):
    opened = _open(path)
    if opened.num_records() != count:
        raise ValueError(
            f"{path}: expected {messages.counted(count, 'entry', 'entries')} by the index, found"
            f" {opened.num_records()}; the file is damaged: make it again"
        )
    return opened


def _open(path: Path):
    return array_record_module.ArrayRecordReader(
        str(path), _READER, file_reader_buffer_size=_READER_BUFFER
    )
