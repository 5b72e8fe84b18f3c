"""Dialogues on disk: NAME.array_record (one msgpack Record each) and NAME.json (what it holds).

The index names the codec and the tokenizer by hash: records cannot be read with another codec than
the one that made them. A record is valid or it is refused, on writing as on reading.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from jaxtyping import UInt16

from mvjax import config as config_lib
from mvjax import types
from mvjax.weights import locate

SUFFIX = ".array_record"
VERSION = 1
_WRITER_OPTIONS = "group_size:1"  # one record a chunk, for random access
_READER_OPTIONS = "readahead_buffer_size:0"  # reads are random


class Turn(msgspec.Struct, frozen=True):
    """One utterance; the speaker is "user" or "assistant"."""

    speaker: str
    text: str


class Word(msgspec.Struct, frozen=True, array_like=True):
    """One of the assistant's words, in seconds from the record's first sample."""

    text: str
    start: float
    end: float


class Record(msgspec.Struct, frozen=True):
    """One dialogue.

    Attributes:
      id: unique within its file.
      kinds: question kinds, for statistics.
      turns: the transcript of both sides.
      facts: what the image shows, where that is known.
      image: an encoded image file (PNG, JPEG, ...) or None.
      words: the assistant's words; None: there is no transcript (the text row is then -1).
      codes: little-endian uint16 [2Q, T]: the assistant's codebooks, then the user's; empty if the
        dialogue is text only.
      codebooks: 2Q; 0 if text only.
      seconds: duration of the speech; 0 if text only.
    """

    id: str
    kinds: tuple[str, ...]
    turns: tuple[Turn, ...]
    facts: dict[str, str | int] | None = None
    image: bytes | None = None
    words: tuple[Word, ...] | None = None
    codes: bytes = b""
    codebooks: int = 0
    seconds: float = 0.0

    def array(self) -> UInt16[np.ndarray, "streams T"]:
        """The codes [2Q, T]; [0, 0] if the dialogue is text only."""
        flat = np.frombuffer(self.codes, "<u2").astype(np.uint16)
        return flat.reshape(self.codebooks, -1) if self.codebooks else flat.reshape(0, 0)


class Identity(msgspec.Struct, frozen=True):
    """SHA-256 of the files that gave the codes and the ids their meaning."""

    codec: str
    tokenizer: str


class Index(msgspec.Struct, frozen=True):
    """What NAME.json says about NAME.array_record."""

    version: int
    count: int
    bytes: int
    sha256: str
    identity: Identity


def identity(frozen: config_lib.FrozenFiles) -> Identity:
    """Hashes the codec and the tokenizer of a run."""
    return Identity(
        codec=locate.file_hash(locate.resolve(frozen.codec)),
        tokenizer=locate.file_hash(locate.resolve(frozen.tokenizer)),
    )


def encode_codes(codes: np.ndarray) -> bytes:
    """Packs codes [2Q, T] for `Record.codes`."""
    return np.ascontiguousarray(codes, dtype="<u2").tobytes()


def write(path: Path, items: Iterable[Record], made_with: Identity) -> Index:
    """Writes a record file and its index; neither appears under its name before both are whole.

    Raises:
      ValueError: naming every problem of the first invalid record.
      OSError: if the folder cannot be written or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"{path}: expected a writable folder; choose another data.root")
    draft = path.with_name(f"{path.name}.part")
    writer = array_record_module.ArrayRecordWriter(str(draft), _WRITER_OPTIONS)
    count = 0
    seen: set[str] = set()
    try:
        for record in items:
            found = problems(record) + (
                [f"id {record.id!r} used twice"] if record.id in seen else []
            )
            if found:
                raise ValueError(f"{path.name} record {count} ({record.id!r}): {'; '.join(found)}")
            seen.add(record.id)
            writer.write(msgspec.msgpack.encode(record))
            count += 1
        writer.close()
    except BaseException:
        writer.close()
        draft.unlink(missing_ok=True)
        raise
    written = array_record_module.ArrayRecordReader(str(draft), _READER_OPTIONS).num_records()
    if written != count:
        raise OSError(f"{draft}: expected {count} records, wrote {written}; is the disk full?")
    index = Index(VERSION, count, draft.stat().st_size, locate.file_hash(draft), made_with)
    index_path(path).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1))
    draft.replace(path)
    return index


class Reader:
    """Random access to a record file.

    Args:
      path: NAME.array_record.
      expected: the identity of the run; None: read records of any.

    Raises:
      ValueError: if the file and its index disagree, or the records were made with other files.
      FileNotFoundError: if either is missing.
    """

    def __init__(self, path: Path, *, expected: Identity | None):
        self.path = path
        self.index = _read_index(path)
        if expected is not None and self.index.identity != expected:
            raise ValueError(_identity_message(path, self.index.identity, expected))
        self._reader = array_record_module.ArrayRecordReader(str(path), _READER_OPTIONS)
        if self._reader.num_records() != self.index.count:
            raise ValueError(
                f"{path}: expected {self.index.count} records by its index, "
                f"found {self._reader.num_records()}; the file is damaged: make it again"
            )

    def __len__(self) -> int:
        return self.index.count

    def __getitem__(self, i: int) -> Record:
        """Reads and validates one record.

        Raises:
          ValueError: naming the file, the record's number and, if it can be read, its id.
        """
        place = f"{self.path} record {i}"
        if not 0 <= i < len(self):
            raise IndexError(f"{place}: expected 0 <= number < {len(self)}")
        try:
            record = msgspec.msgpack.decode(self._reader.read([i])[0], type=Record)
        except (RuntimeError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ValueError(f"{place}: expected a Record, cannot read it: {error}") from error
        found = problems(record)
        if found:
            raise ValueError(f"{place} ({record.id!r}): {'; '.join(found)}")
        return record

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


def verify(path: Path) -> list[str]:
    """Reads a whole file and returns what is wrong with it: its hash and every bad record."""
    try:
        reader = Reader(path, expected=None)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    found = []
    if locate.file_hash(path) != reader.index.sha256:
        found.append(f"{path}: its SHA-256 is not the one in {index_path(path).name}")
    for i in range(len(reader)):
        try:
            reader[i]
        except ValueError as error:
            found.append(str(error))
    return found


def problems(record: Record) -> list[str]:
    """What is wrong with a record, as phrases; empty if it is valid."""
    found = []
    if not record.id:
        found.append("id: expected a name, got an empty one")
    if not record.turns:
        found.append("turns: expected at least one, got none")
    for n, turn in enumerate(record.turns):
        if turn.speaker not in ("user", "assistant") or not turn.text.strip():
            found.append(f"turn {n}: expected words of user or assistant, got {turn}")
    frames = record.seconds / types.FRAME_SECONDS
    if not math.isfinite(frames) or frames < 0:
        return [*found, f"seconds: expected a duration, got {record.seconds}"]
    expected = 2 * record.codebooks * math.ceil(round(frames, 3))
    if record.codebooks < 0 or record.codebooks % 2 or len(record.codes) != expected:
        found.append(
            f"codes: expected {expected} bytes for {record.codebooks} (even) codebooks and "
            f"{record.seconds} s, got {len(record.codes)}"
        )
    for n, word in enumerate(record.words or ()):
        if not 0 <= word.start <= word.end <= record.seconds + types.FRAME_SECONDS:
            found.append(f"word {n}: expected times within {record.seconds} s, got {word}")
    return found


def index_path(path: Path) -> Path:
    """NAME.json beside NAME.array_record."""
    return path.with_name(path.name.removesuffix(SUFFIX) + ".json")


def _read_index(path: Path) -> Index:
    beside = index_path(path)
    for file in (path, beside):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such file; records are {path.name} and {beside.name}"
            )
    try:
        index = msgspec.json.decode(beside.read_bytes(), type=Index)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{beside}: expected an index of records: {error}") from error
    if index.version != VERSION:
        raise ValueError(f"{beside}: expected version {VERSION}, got {index.version}")
    size = path.stat().st_size
    if size != index.bytes:
        raise ValueError(
            f"{path}: expected {index.bytes} bytes by its index, got {size}; "
            "the file is truncated or not the index's own: copy or make it again"
        )
    return index


def _identity_message(path: Path, found: Identity, expected: Identity) -> str:
    parts = [
        f"{name} {getattr(found, name)[:12]}, this run has {getattr(expected, name)[:12]}"
        for name in ("codec", "tokenizer")
        if getattr(found, name) != getattr(expected, name)
    ]
    return f"{path}: made with {' and '.join(parts)}; make the records again with this run's files"
