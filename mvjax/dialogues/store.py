"""Written dialogues on disk: one JSON object a line (FILE.jsonl), or SQLite (FILE.db, .sqlite, .sqlite3).

Each dialogue is written when it is finished, so a killed run loses only unfinished ones. Dropped dialogues
are listed by id with their reasons: FILE.dropped.jsonl, or the table `dropped`.
"""

from __future__ import annotations

import codecs
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mvjax.data.ingest import sources
from mvjax.data.records import dataset

T = TypeVar("T")
Bad = Callable[[str, str], None]  # is told the place and the reason of what cannot be read
SQLITE = (".db", ".sqlite", ".sqlite3")
_SPEAKERS = ("user", "assistant")


class WrittenDialogue(msgspec.Struct, frozen=True, omit_defaults=True):
    """A dialogue as text; without a picture it has neither caption nor image."""

    id: str  # unique within its file
    turns: tuple[dataset.Turn, ...]
    kinds: tuple[str, ...] = ()  # one for each of the user's turns
    caption_id: str | None = None  # of the caption (or record) that it was made from
    caption: str | None = None  # the notes in the prompts
    image: str | None = None  # a file, relative to the folder of this file
    facts: dict[str, str | int] | None = None  # what the picture shows, where the source says so
    model: str = ""  # the language model's name
    seed: int = 0  # of the requests


class DroppedDialogue(msgspec.Struct, frozen=True):
    """A dialogue that failed in every attempt, with their reasons."""

    id: str
    reasons: tuple[str, ...]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[DialogueStore]:
    """Opens a file, or creates it, to append to.

    Raises:
      ValueError: if the suffix is of neither format, or the file has another format than its suffix.
    """
    _check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in SQLITE:
        with _database(path) as db, db:
            db.executescript(_SCHEMA)
        with _database(path) as db:
            yield _Sqlite(db)
    else:
        for file in (path, _dropped_file(path)):
            _repair(file)
        with path.open("ab") as kept, _dropped_file(path).open("ab") as dropped:
            yield _Jsonl(path, kept, dropped)


def stop(place: str, reason: str) -> None:
    """Raises a ValueError; what the readers do by default with a bad line."""
    raise ValueError(f"{place}: {reason}")


def read(path: Path, *, bad: Bad = stop) -> Iterator[WrittenDialogue]:
    """The dialogues of a file, in the order in which they were added.

    `bad` is told the place of what is no dialogue, has a turn without words or speaker, or another's id.

    Raises:
      ValueError: if `bad` does, or the suffix is of neither format.
      FileNotFoundError: if there is no such file.
    """
    _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; write one by `mvjax dialogues write`")
    dialogues = _read_sqlite(path, bad) if path.suffix in SQLITE else _read_jsonl(path, bad)
    seen: set[str] = set()
    for place, dialogue in dialogues:
        wrong = [t for t in dialogue.turns if t.speaker not in _SPEAKERS or not t.text.strip()]
        if not dialogue.id or not dialogue.turns or wrong:
            bad(
                f"{place} ({dialogue.id!r})",
                "expected an id and turns with words of user or assistant, got"
                f" {wrong or dialogue.turns}",
            )
        elif dialogue.id in seen:
            bad(place, f"id {dialogue.id!r} used twice")
        else:
            seen.add(dialogue.id)
            yield dialogue


def json_lines(
    path: Path, kind: type[T], *, expected: str, bad: Bad = stop
) -> Iterator[tuple[str, T]]:
    """Yields (place, object) of lines that are not blank; `bad` is told of those that are no `kind`."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                decoded = msgspec.json.decode(line, type=kind)
            except sources.DAMAGE as error:
                bad(place, f"expected {expected}: {error}")
                continue
            yield place, decoded


class _Jsonl:
    """Appends dialogues as they are finished: each survives a kill of this process."""

    def __init__(self, path: Path, kept, dropped):
        self._path, self._kept, self._dropped = path, kept, dropped

    def done(self) -> set[str]:
        """Ids that are written or dropped."""
        ids = {dialogue.id for _, dialogue in _read_jsonl(self._path, stop)}
        dropped = json_lines(_dropped_file(self._path), DroppedDialogue, expected="a dialogue")
        return ids | {dialogue.id for _, dialogue in dropped}

    def add(self, dialogue: WrittenDialogue | DroppedDialogue) -> None:
        file = self._kept if isinstance(dialogue, WrittenDialogue) else self._dropped
        file.write(msgspec.json.encode(dialogue) + b"\n")
        file.flush()


class _Sqlite:
    def __init__(self, db: sqlite3.Connection):
        self._db = db

    def done(self) -> set[str]:
        rows = self._db.execute("SELECT id FROM dialogues UNION SELECT id FROM dropped")
        return {row[0] for row in rows}

    def add(self, dialogue: WrittenDialogue | DroppedDialogue) -> None:
        with self._db:
            if isinstance(dialogue, DroppedDialogue):
                row = (dialogue.id, _json(dialogue.reasons))
                self._db.execute("INSERT INTO dropped VALUES (?, ?)", row)
                return
            values = [getattr(dialogue, name) for name in _COLUMNS]
            values = [_json(v) if isinstance(v, (tuple, dict)) else v for v in values]
            marks = ", ".join("?" * len(values))
            self._db.execute(f"INSERT INTO dialogues VALUES ({marks})", values)
            turns = [(dialogue.id, n, t.speaker, t.text) for n, t in enumerate(dialogue.turns)]
            self._db.executemany("INSERT INTO turns VALUES (?, ?, ?, ?)", turns)


DialogueStore = _Jsonl | _Sqlite
_COLUMNS = ("id", "kinds", "caption_id", "caption", "image", "facts", "model", "seed")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS dialogues (id TEXT PRIMARY KEY, kinds TEXT, caption_id TEXT, caption TEXT,
    image TEXT, facts TEXT, model TEXT, seed INTEGER);
CREATE TABLE IF NOT EXISTS turns (id TEXT, turn INTEGER, speaker TEXT, text TEXT, PRIMARY KEY (id, turn));
CREATE TABLE IF NOT EXISTS dropped (id TEXT PRIMARY KEY, reasons TEXT);
"""


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path)
    try:
        yield db
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path}: expected SQLite with dialogues: {error}") from error
    finally:
        db.close()


def _read_sqlite(path: Path, bad: Bad) -> Iterator[tuple[str, WrittenDialogue]]:
    with _database(path) as db:
        rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM dialogues ORDER BY rowid")
        for number, row in enumerate(rows, 1):
            place = f"{path} dialogue {number}"
            fields: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
            said = "SELECT speaker, text FROM turns WHERE id = ? ORDER BY turn"
            fields["turns"] = [
                {"speaker": speaker, "text": text}
                for speaker, text in db.execute(said, (fields["id"],))
            ]
            try:
                for name in ("kinds", "facts"):
                    fields[name] = msgspec.json.decode(fields[name]) if fields[name] else None
                fields["kinds"] = fields["kinds"] or ()
                dialogue = msgspec.convert(fields, WrittenDialogue)
            except sources.DAMAGE as error:
                bad(place, f"expected a dialogue: {error}")
                continue
            yield place, dialogue


def _read_jsonl(path: Path, bad: Bad) -> Iterator[tuple[str, WrittenDialogue]]:
    return json_lines(path, WrittenDialogue, expected="a dialogue", bad=bad)


def _repair(path: Path) -> None:
    """Ends the last line if it is whole, as editors may leave it; cuts off what a kill left unfinished."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        last, size = b"", 0
        for last in file:
            size += len(last)
        if not last or last.endswith(b"\n"):
            return
        try:
            msgspec.json.decode(last.removeprefix(codecs.BOM_UTF8))
        except sources.DAMAGE:
            file.truncate(size - len(last))
        else:
            file.write(b"\n")


def _dropped_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}.dropped{path.suffix}")


def _check_suffix(path: Path) -> None:
    if path.suffix not in (*SQLITE, ".jsonl"):
        raise ValueError(f"{path}: expected FILE.jsonl or SQLite (FILE{', FILE'.join(SQLITE)})")


def _json(value: Sequence | dict) -> str:
    return msgspec.json.encode(value).decode()
