import contextlib
import sqlite3

import msgspec
import pytest

from mvjax.data.records import dataset
from mvjax.dialogues import store

TURNS = (dataset.Turn("user", "Ist es blau?"), dataset.Turn("assistant", "Ja, ‘blau’."))
FULL = store.WrittenDialogue(
    "a/b", TURNS, ("PROP",), "b", "A caption.", "b.png", {"digit": 3, "colour": "blue"}, "m", 7
)
BARE = store.WrittenDialogue("c", TURNS)


@pytest.mark.parametrize("suffix", [".jsonl", ".db", ".sqlite", ".sqlite3"])
def test_dialogues_come_back_and_dropped_ones_count_as_done(tmp_path, suffix):
    path = tmp_path / "new" / f"d{suffix}"
    with store.opened(path) as kept:
        assert kept.done() == set()
        kept.add(FULL)
        kept.add(store.DroppedDialogue("lost", ("repeats", "repeats")))
    with store.opened(path) as kept:
        kept.add(BARE)
        assert kept.done() == {"a/b", "lost", "c"}
    assert list(store.read(path)) == [FULL, BARE]


def test_sqlite_can_be_queried(tmp_path):
    with store.opened(tmp_path / "d.db") as kept:
        kept.add(FULL)
    db = sqlite3.connect(tmp_path / "d.db")
    asked = "SELECT text FROM turns WHERE id = 'a/b' AND speaker = 'user' ORDER BY turn"
    assert db.execute(asked).fetchall() == [("Ist es blau?",)]
    db.close()


def test_a_line_that_a_kill_cut_off_is_removed_and_the_rest_stays(tmp_path):
    path = tmp_path / "d.jsonl"
    with store.opened(path) as kept:
        kept.add(FULL)
        kept.add(BARE)
    path.write_bytes(path.read_bytes()[:-9])
    with store.opened(path) as kept:
        assert kept.done() == {"a/b"}
        kept.add(BARE)
    assert list(store.read(path)) == [FULL, BARE]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_whole_last_line_stays_even_without_its_line_break(tmp_path, bom):
    path = tmp_path / "d.jsonl"
    path.write_bytes(bom + msgspec.json.encode(FULL))
    with store.opened(path) as kept:
        assert kept.done() == {"a/b"}
        kept.add(BARE)
    assert list(store.read(path)) == [FULL, BARE]


def test_bad_lines_are_told_and_the_others_read(tmp_path):
    path, told = tmp_path / "d.jsonl", []
    silent = store.WrittenDialogue("s", (dataset.Turn("user", " "),))
    lines = [b"{", b"\xff", b"[" * 100_000, *map(msgspec.json.encode, (FULL, silent, FULL, BARE))]
    path.write_bytes(b"\n".join(lines))
    assert list(store.read(path, bad=lambda *line: told.append(line))) == [FULL, BARE]
    assert [place.removeprefix(f"{path} ") for place, _ in told] == [
        "line 1", "line 2", "line 3", "line 5 ('s')", "line 6"
    ]  # fmt: skip


def test_a_bad_row_of_a_database_is_told_and_the_others_read(tmp_path):
    path, told = tmp_path / "d.db", []
    with store.opened(path) as kept:
        for dialogue in (FULL, BARE):
            kept.add(dialogue)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE dialogues SET facts = '{' WHERE id = 'a/b'")
    assert list(store.read(path, bad=lambda *line: told.append(line))) == [BARE]
    assert told[0][0] == f"{path} dialogue 1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x"}', "line 1: expected a dialogue: .*turns"),
        ('{"id": "x", "turns": []}', "line 1 .'x'.: expected an id and turns"),
        ('{"id": "x", "turns": [{"speaker": "me", "text": "hm"}]}', "words of user or assistant"),
        ("junk", "line 1: expected a dialogue"),
    ],
)
def test_what_is_no_dialogue_is_named(tmp_path, line, message):
    (tmp_path / "d.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        list(store.read(tmp_path / "d.jsonl"))


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected FILE.jsonl or SQLite"):
        list(store.read(tmp_path / "d.txt"))
    with pytest.raises(FileNotFoundError, match="dialogues write"):
        list(store.read(tmp_path / "d.jsonl"))
    (tmp_path / "d.db").write_text("no database, but long enough to have a header" * 9)
    with pytest.raises(ValueError, match="expected SQLite"):
        list(store.read(tmp_path / "d.db"))
    with store.opened(tmp_path / "twice.jsonl") as kept:
        kept.add(BARE)
        kept.add(BARE)
    with pytest.raises(ValueError, match="'c' used twice"):
        list(store.read(tmp_path / "twice.jsonl"))
