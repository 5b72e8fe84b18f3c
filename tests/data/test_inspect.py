"""Validate, stats and show: the functions behind them, and the command line."""

import io
import json

import msgspec
import numpy as np
import one_dataset
import pytest
from PIL import Image

from mvjax import cli
from mvjax.config import schema
from mvjax.data import image_features, images
from mvjax.data.inspect import folder as inspect_folder
from mvjax.data.inspect import picture, statistics, timeline
from mvjax.data.records import dataset, shards

MADE_WITH = dataset.Identity(codec="c" * 64, tokenizer="t" * 64)
TURNS = (dataset.Turn("user", "what is it"), dataset.Turn("assistant", "a $seven at left"))
FRAMES = 130


def _picture(i=0):
    pixels = np.full((11, 17, 3), 40 * i, np.uint8)
    return images.encode_png(pixels)


def _spoken(i=0, **changes):
    codes = np.random.default_rng(i).integers(0, 50, (4, FRAMES))
    fields = {
        "id": f"visual-{i}",
        "kinds": ("NUM",),
        "turns": TURNS,
        "facts": {"digit": 7},
        "image": _picture(),
        "words": (
            dataset.Word("a", 1.0, 1.04),
            dataset.Word("$seven", 1.2, 1.5),
            dataset.Word("at", 9.0, 9.1),
            dataset.Word("left", 9.02, 9.4),
        ),
        "user_words": (dataset.Word("what", 0.1, 0.3), dataset.Word("is it", 0.3, 0.7)),
        "codes": dataset.encode_codes(codes),
        "codebooks": 4,
        "seconds": FRAMES * 0.08,
    }
    return dataset.Record(**(fields | changes))


def _text(i, **changes):
    fields = {"id": f"text-{i}", "kinds": ("LOC", "NUM"), "turns": TURNS, "image": _picture(i % 2)}
    return dataset.Record(**(fields | changes))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    dataset.write(folder / "visual", [_spoken(i) for i in range(3)], MADE_WITH)
    dataset.write(folder / "text", [_text(i) for i in range(5)], dataset.Identity())
    return folder


def run(capsys, *argv):
    status = cli.main([str(word) for word in argv])
    return status, capsys.readouterr().out


def test_a_good_folder_is_good(root, capsys):
    assert dict(inspect_folder.validate(root)) == {
        root / "text": [],
        root / "visual": [],
        root: [],
    }
    status, out = run(capsys, "data", "validate", root)
    assert status == 0
    assert "text: 5 records, 2 images" in out and out.endswith(f"{root}: good\n")


def test_every_problem_of_every_dataset_is_listed(root, capsys):
    shard = root / "visual-00000-of-00001.array_record"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255  # in the padding or in a record: the hash differs
    shard.write_bytes(data)
    (root / "text.json").write_text("{}")
    (root / "old-00000-of-00001.array_record").write_bytes(b"")
    (root / "new-00003.array_record.part").write_bytes(b"")
    found = dict(inspect_folder.validate(root))
    assert "version 0" in found[root / "text"][0]
    assert any("SHA-256" in problem for problem in found[root / "visual"])
    assert [p.split(":")[0].rsplit("/")[-1] for p in found[root]] == [
        "new-00003.array_record.part",
        "old-00000-of-00001.array_record",
    ]
    status, out = run(capsys, "data", "validate", root)
    assert status == 1
    for problems in found.values():
        assert all(problem in out for problem in problems)
    assert out.splitlines()[-1] == f"{root}: {sum(map(len, found.values()))} problems"


def test_features_belong_to_the_folder(root):
    identity = image_features.FeatureIdentity("a hash", 16)

    def encode(pixels):
        return np.zeros((len(pixels), 1, 50), np.float32)

    image_features.write(root / "visual", encode, identity, batch=4, limits=schema.LimitsConfig())
    assert not any(dict(inspect_folder.validate(root)).values())
    (path,) = shards.paths(root / "visual.features", 1)
    path.write_bytes(path.read_bytes().replace(bytes(100), b"1" * 100, 1))
    (problem,) = dict(inspect_folder.validate(root))[root / "visual.features"]
    assert str(path) in problem and "SHA-256" in problem


def test_an_image_that_does_not_decode_is_a_problem(root):
    whole = _picture()
    cut = _spoken(9, image=whole[: len(whole) - 30])  # its header is good
    dataset.write(root / "cut", [cut], MADE_WITH)
    (problem,) = dict(inspect_folder.validate(root))[root / "cut"]
    assert "cut image 0: image: " in problem and "do not decode as a whole image" in problem


def test_a_folder_without_datasets(tmp_path, capsys):
    assert cli.main(["data", "validate", str(tmp_path)]) == 2
    assert "expected a folder of datasets" in capsys.readouterr().err


def test_statistics_count_what_is_there(root, capsys):
    found = statistics.statistics(root / "visual", timeline.pieces(None))
    assert (found.records, found.with_image, found.images, found.spoken) == (3, 3, 1, 3)
    assert found.hours == pytest.approx(3 * FRAMES * 0.08 / 3600)
    assert found.turns == {"user": 3, "assistant": 3}
    assert found.words == {"user": 9, "assistant": 12}
    assert found.kinds == {"NUM": {"records": 3, "turns": 6}}
    assert found.frames == {256: 3} and found.tokens == {16: 3}  # 3 + 4 words, BOS EOS BOS
    status, out = run(capsys, "data", "stats", root, "--json")
    read = json.loads(out)
    assert status == 0 and list(read) == ["text", "visual"]
    assert read["text"]["kinds"] == {kind: {"records": 5, "turns": 10} for kind in ("LOC", "NUM")}
    assert read["text"]["images"] == 2 and read["text"]["spoken"] == 0
    assert read["text"]["frames"] == {} and read["text"]["tokens"] == {"16": 5}
    model = "package:mvjax.digits/assets/tokenizer.model"
    status, out = run(capsys, "data", "stats", root, "--tokenizer", model)
    assert status == 0 and "LOC                           5         10" in out
    assert "129 ..     256          3 ####" in out


def test_statistics_count_unreadable_records(root, monkeypatch):
    row = dataset.RecordReader.stored

    def bad(self, i):
        if i == 1:
            raise ValueError
        return row(self, i)

    monkeypatch.setattr(dataset.RecordReader, "stored", bad)
    found = statistics.statistics(root / "text", timeline.pieces(None))
    assert found.records == 5 and found.bad == 1 and sum(found.tokens.values()) == 4


def test_words_stand_for_themselves():
    pieces = timeline.pieces(None)
    ids = pieces.encode("a seven is a seven")
    assert ids[0] == ids[3] and ids[1] == ids[4] and len(set(ids)) == 3
    assert [pieces.id_to_piece(i) for i in ids] == ["a", "seven", "is", "a", "seven"]
    assert min(ids) > max(schema.ModelConfig().text_pad, schema.ModelConfig().text_epad)


def test_the_timeline_is_the_grid_of_training():
    shown = timeline.timeline(_spoken(), timeline.pieces(None), schema.ModelConfig())
    assert len(shown.cells) == FRAMES
    seen = {n: cell.text or cell.kind for n, cell in enumerate(shown.cells) if cell.kind != "pad"}
    assert seen == {
        11: "epad", 12: "a", 14: "epad", 15: "$seven", 111: "epad", 112: "left",
    }  # fmt: skip
    assert [(s.speaker, s.start, s.end, s.text) for s in shown.spans] == [
        ("user", 0.1, 0.7, "what is it"),
        ("assistant", 1.0, 1.5, "a $seven"),
        ("assistant", 9.0, 9.4, "at left"),
    ]
    text = timeline.text(shown)
    assert "image  17x11 PNG" in text and "10.40 s, 130 frames of 4 codebooks" in text
    assert "0.00 s  . . . . . . . . . . . + a . + $seven" in text
    assert "have no times" not in text
    unknown = msgspec.structs.replace(_spoken(), words=None, user_words=None, image=None)
    shown = timeline.timeline(unknown, timeline.pieces(None), schema.ModelConfig())
    assert {cell.kind for cell in shown.cells} == {"absent"} and shown.spans == ()
    assert "have no times" in timeline.text(shown)


def test_a_transcript_is_shown_as_a_row():
    shown = timeline.timeline(_text(0), timeline.pieces(None), schema.ModelConfig())
    words = ["BOS", "what", "is", "it", "EOS", "a", "$seven", "at", "left", "BOS"]
    assert [cell.text for cell in shown.cells] == words
    kinds = ["control", "token", "token", "token", "control", *["learned"] * 4, "control"]
    assert [cell.kind for cell in shown.cells] == kinds
    assert " ".join(words) in timeline.text(shown)


@pytest.mark.parametrize("record", [_spoken(), _text(1, image=None)])
def test_the_picture_shows_cells_and_speakers(record):
    shown = timeline.timeline(record, timeline.pieces(None), schema.ModelConfig())
    with Image.open(io.BytesIO(picture.png(shown))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(np.uint32)
    seen = set(np.unique(pixels @ np.array([1 << 16, 1 << 8, 1], np.uint32)).tolist())
    cells = {k for k, code in picture._COLORS.items() if int(code[1:], 16) in seen}
    expected = {"pad", "epad", "token"} if record.codes else {"token", "learned", "control"}
    assert cells - {"absent"} == expected
    sides = [int(code[1:], 16) in seen for code, _ in picture._LANES.values()]
    assert sides == [bool(record.codes)] * 2


def test_show_finds_a_record_in_any_dataset(root, tmp_path, capsys):
    out = tmp_path / "record.png"
    status, text = run(capsys, "data", "show", root, "--id", "visual-2", "--out", out)
    assert status == 0 and text.startswith("visual-2\n") and out.read_bytes()[1:4] == b"PNG"
    dataset.write(root / "again", [_text(3)], dataset.Identity())
    with pytest.raises(ValueError, match=r"'text-3' is in \['again', 'text'\]; say which"):
        inspect_folder.find(root, "text-3")
    assert inspect_folder.find(root, "text-3", name="text").image == _picture(1)
    with pytest.raises(ValueError, match="expected a record with id 'text-9' in any dataset"):
        inspect_folder.find(root, "text-9")


def test_one_dataset_that_cannot_be_opened_does_not_hide_the_others(tmp_path, capsys):
    one_dataset.write(tmp_path, [one_dataset.record(0)], name="good")
    one_dataset.write(tmp_path, [one_dataset.record(1)], name="bad")
    (tmp_path / "bad.json").write_text('{"format": "mvjax records", "version": 1}')
    (tmp_path / "transcript.json").write_text('{"alignments": []}')  # of another kind
    assert cli.main(["data", "stats", str(tmp_path), "--json"]) == 1
    told = capsys.readouterr()
    assert list(json.loads(told.out)) == ["good"] and "bad.json: " in told.err
    assert inspect_folder.find(tmp_path, "r0") == one_dataset.record(0)
    with pytest.raises(ValueError, match=r"'r1' in any dataset, there is none; not opened:\n.*bad"):
        inspect_folder.find(tmp_path, "r1")
