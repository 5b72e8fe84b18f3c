import pytest

from mvjax.data import images
from mvjax.data.records import dataset
from mvjax.dialogues import captions
from mvjax.digits import world


def test_jsonl_keeps_facts_and_finds_pictures_from_elsewhere(tmp_path):
    (tmp_path / "in" / "pictures").mkdir(parents=True)
    (tmp_path / "in" / "pictures" / "a.png").write_bytes(b"...")
    source = tmp_path / "in" / "captions.jsonl"
    source.write_text(
        '{"id": "a", "caption": "One.\\nTwo.", "image": "pictures/a.png", "facts": {"n": 2}}\n\n'
        '{"id": "b", "caption": "Three."}\n'
    )
    first, second = captions.read(source)
    assert first == captions.Caption("a", "One. Two.", "pictures/a.png", {"n": 2})
    assert second == captions.Caption("b", "Three.")
    out = tmp_path / "out" / "d.jsonl"
    assert captions.picture(first, source=source, out=out) == "../in/pictures/a.png"
    assert captions.picture(second, source=source, out=out) is None
    (tmp_path / "in" / "pictures" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="no such picture"):
        captions.picture(first, source=source, out=out)


def test_records_give_what_the_assistant_says_and_one_file_for_each_image(tmp_path):
    scenes = world.scenes("test", 2, 0)
    pictures = [images.encode_png(scene.image) for scene in scenes]
    with dataset.RecordWriter(tmp_path / "coco", dataset.Identity()) as writer:
        for n, picture in enumerate([pictures[0], pictures[0], pictures[1], None]):
            turns = (
                dataset.Turn("user", "What do you see?"),
                dataset.Turn("assistant", f"Caption {n}."),
            )
            writer.add(dataset.Record(f"r{n}", ("caption",), turns, image=picture))
    source, out = tmp_path / "coco", tmp_path / "d.jsonl"
    found = list(captions.read(source))
    assert [(c.id, c.caption) for c in found] == [(f"r{n}", f"Caption {n}.") for n in range(4)]
    names = [captions.picture(c, source=source, out=out) for c in found]
    assert names[0] == names[1] != names[2] and names[3] is None
    assert (tmp_path / names[2]).read_bytes() == pictures[1] and names[2].endswith(".png")


def test_long_captions_end_with_a_sentence():
    text = "A first one. " + "A second, longer one. " * 60
    short = captions.shorten(text)
    assert len(short) <= 1000 < len(text) and short.endswith("longer one.")
    assert captions.shorten("word " * 300) == ("word " * 200).rstrip()[:999]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"caption": "x"}\n', "line 1: expected .*id"),
        ('{"id": "a", "caption": " "}\n', "line 1: expected a caption with an id of its own"),
        ('{"id": "a", "caption": "x"}\n' * 2, "line 2: expected a caption with an id of its own"),
        ("junk\n", "line 1: expected"),
    ],
)
def test_what_is_no_caption_is_named(tmp_path, lines, message):
    (tmp_path / "c.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=message):
        list(captions.read(tmp_path / "c.jsonl"))


def test_bad_captions_are_told_and_the_others_read(tmp_path):
    good = ['{"id": "a", "caption": "A."}', '{"id": "b", "caption": "B."}']
    text = "\ufeff" + "\n".join([good[0], "junk", '{"id": "a", "caption": "x"}', good[1]])
    (tmp_path / "c.jsonl").write_text(text, encoding="utf-8")
    told = []
    found = captions.read(tmp_path / "c.jsonl", bad=lambda *line: told.append(line))
    assert [caption.id for caption in found] == ["a", "b"]
    assert [place.split()[-1] for place, _ in told] == ["2", "3"]


def test_a_damaged_record_is_told_and_the_others_read(tmp_path):
    pictures = [images.encode_png(scene.image) for scene in world.scenes("test", 3, 0)]
    with dataset.RecordWriter(tmp_path / "coco", dataset.Identity()) as writer:
        for name, picture in zip("abc", pictures, strict=True):
            turns = (dataset.Turn("assistant", f"Caption {name}."),)
            writer.add(dataset.Record(name, ("caption",), turns, image=picture))
    (shard,) = tmp_path.glob("coco.images-*.array_record")
    place = shard.read_bytes().index(pictures[1][-40:])
    with shard.open("r+b") as file:
        file.seek(place)
        file.write(bytes(40))
    told = []
    found = captions.read(tmp_path / "coco", bad=lambda *line: told.append(line))
    assert [caption.id for caption in found] == ["a", "c"]
    assert [place for place, _ in told] == [f"{tmp_path / 'coco'} record 1"]


def test_a_missing_source_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="or records: there is no .*none.json"):
        list(captions.read(tmp_path / "none"))
