"""Written dialogues as records of text and pictures."""

import pytest

from mvjax import cli
from mvjax.data import images
from mvjax.data.records import dataset
from mvjax.dialogues import store, text_records
from mvjax.digits import world

TURNS = (dataset.Turn("user", "Is it red?"), dataset.Turn("assistant", "No, it is blue."))


@pytest.fixture
def written(tmp_path):
    """Four dialogues: with a picture, without, with one that is lost, and a line that is none."""
    (tmp_path / "p.png").write_bytes(images.encode_png(world.scenes("test", 1, 0)[0].image))
    with store.opened(tmp_path / "d.jsonl") as kept:
        for name, image in (("a", "p.png"), ("b", None), ("c", "lost.png")):
            kept.add(store.WrittenDialogue(name, TURNS, ("PROP",), image=image, facts={"n": 1}))
    with (tmp_path / "d.jsonl").open("a") as file:
        file.write("junk\n")
    return tmp_path / "d.jsonl"


def test_records_hold_the_dialogues_and_the_rest_is_listed(capsys, tmp_path, written):
    words = ["dialogues", "records", str(written), "--out", str(tmp_path / "root"), "--name", "d"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "2 records, 1 image," in said and "1 missing image, 1 damaged dialogue" in said
    a, b = dataset.RecordReader(tmp_path / "root" / "d", expected=None)
    assert (a.id, a.turns, a.kinds, a.facts, a.seconds) == ("a", TURNS, ("PROP",), {"n": 1}, 0)
    assert a.image == (tmp_path / "p.png").read_bytes() and (b.id, b.image) == ("b", None)
    listed = (tmp_path / "root" / "d.bad_records.jsonl").read_text()
    assert "lost.png" in listed and "d.jsonl line 4" in listed


def test_nothing_is_written_if_nothing_can_be_read_or_too_much_is_left_out(tmp_path, written):
    with pytest.raises(ValueError, match="at most 1 item may be skipped"):
        text_records.pack(written, tmp_path / "d", budget=1)
    written.write_text("junk\n")
    with pytest.raises(ValueError, match="at least one whole item, got none"):
        text_records.pack(written, tmp_path / "d")
    assert not dataset.index_path(tmp_path / "d").exists()
