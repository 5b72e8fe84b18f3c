import copy
import dataclasses
import json
import pickle
import sqlite3
import struct
import zlib
from concurrent import futures

import msgspec
import numpy as np
import pytest

from mvjax.config import schema
from mvjax.data import images
from mvjax.data.records import dataset, record, shards
from mvjax.data.records import index as index_lib

MADE_WITH = dataset.Identity(codec="c" * 64, tokenizer="t" * 64)


def bomb(size):
    """16 KB that promise size x size pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1 << 24))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def picture(i=0, height=5, width=7):
    rng = np.random.default_rng(i)
    return images.encode_png(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def make(i=0, *, frames=5, codebooks=4, **changes):
    rng = np.random.default_rng(i)
    codes = rng.integers(0, 256, (codebooks, frames))
    fields = {
        "id": f"r{i}",
        "kinds": ("digit",),
        "turns": (dataset.Turn("user", "what is it"), dataset.Turn("assistant", "a seven")),
        "facts": {"digit": 7, "colour": "red", "place": "top left"},
        "image": picture(i),
        "words": (dataset.Word("a", 0.05, 0.1), dataset.Word("seven", 0.1, 0.33)),
        "user_words": (dataset.Word("what", 0.0, 0.02),),
        "codes": dataset.encode_codes(codes),
        "codebooks": codebooks,
        "seconds": frames * 0.08,
    }
    return dataset.Record(**(fields | changes))


def _write(folder, items, name="visual", **options):
    path = folder / name
    dataset.write(path, items, MADE_WITH, **options)
    return path


def _files(folder):
    return sorted(path.name for path in folder.iterdir())


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[place if isinstance(place, int) else data.index(place)] ^= 255
    path.write_bytes(data)


def test_round_trip(tmp_path):
    items = [make(0), make(1, frames=7)]
    items.append(dataset.Record("text", ("place",), items[0].turns))
    reader = dataset.RecordReader(_write(tmp_path, items), expected=MADE_WITH)
    assert list(reader) == items
    assert reader.index.count == len(reader) == 3
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(reader[1].array(), rng.integers(0, 256, (4, 7)))
    assert reader[1].array().dtype == np.uint16
    assert reader[2].array().shape == (0, 0)
    assert dataset.verify(reader.path) == []
    with pytest.raises(IndexError, match="record 3"):
        reader[3]
    with pytest.raises(IndexError, match="record -1"):
        reader[-1]


def test_shards_by_bytes_and_a_new_writing_leaves_no_old_file(tmp_path):
    items = [make(i, frames=5 + i) for i in range(7)]
    path = _write(tmp_path, items, shard_bytes=500)
    index = dataset.RecordReader(path, expected=None).index
    assert len(index.records) > 2 and len(index.images) > 1
    assert sum(shard.count for shard in index.records) == 7
    assert f"visual-00001-of-{len(index.records):05d}.array_record" in _files(tmp_path)
    assert list(dataset.RecordReader(path, expected=None)) == items
    _write(tmp_path, items[:2], name="visual-00001")  # another dataset, like a shard by name
    _write(tmp_path, items[2:4])
    ends = ("-00000-of-00001.array_record", ".images-00000-of-00001.array_record", ".ids", ".json")
    names = ("visual", "visual-00001")
    assert _files(tmp_path) == sorted(name + end for name in names for end in ends)
    assert [r.id for r in dataset.RecordReader(path, expected=None)] == ["r2", "r3"]
    assert dataset.verify(path) == [] == dataset.verify(tmp_path / "visual-00001")


def test_an_image_of_many_dialogues_is_stored_once(tmp_path):
    items = [make(i, image=picture(i % 3)) for i in range(9)]
    reader = dataset.RecordReader(_write(tmp_path, items), expected=None)
    assert [shard.count for shard in reader.index.images] == [3]
    assert [reader.stored(i).image for i in range(9)] == [0, 1, 2] * 3
    assert [record.image for record in reader] == [picture(i % 3) for i in range(9)]


def test_ids_lead_to_records_without_a_scan(tmp_path, monkeypatch):
    items = [dataset.Record(f"text/{i:03d}", (), make().turns) for i in range(300)]
    reader = dataset.RecordReader(_write(tmp_path, items), expected=None)
    read = []
    stored = reader.stored
    monkeypatch.setattr(reader, "stored", lambda i: read.append(i) or stored(i))
    assert [reader.find(f"text/{i:03d}") for i in (0, 299, 123)] == [0, 299, 123]
    assert read == [0, 299, 123]
    with pytest.raises(ValueError, match=r"visual: expected a record with id 'text/300'"):
        reader.find("text/300")


def test_a_reader_is_shared_by_threads_and_copied_to_processes(tmp_path):
    items = [make(i) for i in range(40)]
    reader = dataset.RecordReader(_write(tmp_path, items, shard_bytes=300), expected=MADE_WITH)
    with futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.__getitem__, list(range(40)) * 3)) == items * 3
    assert pickle.loads(pickle.dumps(reader))[7] == items[7]
    assert copy.copy(reader)[39] == items[39]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id: expected a name"),
        ({"id": 7}, "Expected `str`, got `int`"),
        ({"id": "\ud800"}, "cannot write it"),
        ({"turns": ()}, "turns: expected at least one"),
        ({"turns": (dataset.Turn("robot", "hello"),)}, "turn 0: .*robot"),
        ({"turns": (dataset.Turn("user", " "),)}, "turn 0: expected words"),
        ({"codes": b"\0" * 39}, "codes: expected 40 bytes .* got 39"),
        ({"seconds": float("nan")}, "seconds: expected a duration"),
        ({"seconds": 1e9}, r"at most 1800 s \(limits.audio_seconds\), got 1000000000"),
        ({"words": (dataset.Word("late", 0.3, 0.9),)}, "word 0: expected times within"),
        ({"user_words": (dataset.Word("late", 0.3, 0.9),)}, "user word 0: expected times within"),
        ({"image": b"junk"}, "image: 4 bytes do not decode"),
        ({"image": bomb(8000)}, r"at most 50000000 pixels \(limits.image_pixels\), got 8000x8000"),
        ({"image": bomb(65535)}, "4294836225 pixels.*bomb"),
    ],
)
def test_invalid_records_are_not_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"visual record 1 .*{message}"):
        _write(tmp_path, [make(0), make(1, **changes)])
    assert _files(tmp_path) == []


def test_ids_are_unique(tmp_path):
    with pytest.raises(ValueError, match="id 'r0' used twice"):
        _write(tmp_path, [make(0), make(0)])


def test_a_refused_record_may_be_skipped(tmp_path):
    with dataset.RecordWriter(tmp_path / "visual", MADE_WITH) as writer:
        for i in (0, 0, 1):
            try:
                writer.add(make(i))
            except ValueError as error:
                assert "used twice" in str(error)
    assert writer.index.count == 2
    assert dataset.verify(tmp_path / "visual") == []


def test_a_failed_writing_leaves_the_earlier_dataset(tmp_path):
    path = _write(tmp_path, [make(0), make(1)])
    before = _files(tmp_path)
    with pytest.raises(sqlite3.Error), dataset.RecordWriter(path, MADE_WITH) as writer:
        writer.add(make(2))
        raise sqlite3.Error
    assert _files(tmp_path) == before and dataset.verify(path) == []
    assert dataset.RecordReader(path, expected=None)[0] == make(0)


def test_codes_need_the_identity_of_their_codec(tmp_path):
    with pytest.raises(ValueError, match="identity of their codec"):
        dataset.write(tmp_path / "visual", [make()], dataset.Identity())
    text = dataset.Record("text", (), make().turns, image=picture())
    dataset.write(tmp_path / "text", [text], dataset.Identity())
    assert dataset.RecordReader(tmp_path / "text", expected=MADE_WITH)[0] == text


def test_a_name_with_a_suffix_is_refused(tmp_path):
    for name in ("visual.array_record", "visual.json", "my records"):
        with pytest.raises(ValueError, match="without a suffix"):
            dataset.RecordWriter(tmp_path / name, MADE_WITH)


def test_a_flipped_byte_spoils_one_record_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(shards._WRITER, "compressed", shards._WRITER["plain"])
    path = _write(tmp_path, [make(i, image=picture()) for i in range(4)])
    _flip(tmp_path / "visual-00000-of-00001.array_record", b"r2")
    reader = dataset.RecordReader(path, expected=MADE_WITH)
    with pytest.raises(ValueError, match=r"visual record 2: .*array_record entry 2"):
        reader[2]
    assert [reader[i].id for i in (0, 1, 3)] == ["r0", "r1", "r3"]
    found = dataset.verify(path)
    assert len(found) == 2 and "SHA-256" in found[0] and "record 2" in found[1]


def test_a_spoilt_image_is_named_by_record_and_by_verify(tmp_path):
    path = _write(tmp_path, [make(i) for i in range(3)])
    _flip(tmp_path / "visual.images-00000-of-00001.array_record", picture(1)[-40:-20])
    reader = dataset.RecordReader(path, expected=None)
    with pytest.raises(ValueError, match="visual image 1: "):
        reader[1]
    assert reader.stored(1).id == "r1" and reader[2] == make(2)
    assert any("visual image 1" in line for line in dataset.verify(path))


def test_a_record_of_an_image_that_is_not_there_is_named(tmp_path):
    path = _write(tmp_path, [make()])
    writer = shards.ShardWriter(path, shard_bytes=1 << 20, compressed=True)
    writer.write(record.encode(make(), 1))
    writer.close()
    index = msgspec.structs.replace(index_lib.read(path), records=writer.publish())
    index_lib.write(path, index)
    with pytest.raises(ValueError, match="image: expected a number below 1, got 1"):
        dataset.RecordReader(path, expected=None)[0]


def test_wrong_ids_are_found(tmp_path):
    path = _write(tmp_path, [make(i) for i in range(3)])
    table = np.fromfile(tmp_path / "visual.ids", "<u8").reshape(2, 3)
    table[1] = table[1][::-1]
    table.tofile(tmp_path / "visual.ids")
    found = dataset.verify(path)
    assert len(found) == 2 and "SHA-256" in found[0] and "does not lead to the ids" in found[1]


@pytest.mark.parametrize("kind", ["-", ".images-"])
def test_a_truncated_shard_is_named(tmp_path, kind):
    path = _write(tmp_path, [make(i) for i in range(4)])
    shard = tmp_path / f"visual{kind}00000-of-00001.array_record"
    shard.write_bytes(shard.read_bytes()[:-500])
    with pytest.raises(ValueError, match=rf"{shard.name}: expected \d+ bytes .*truncated"):
        dataset.RecordReader(path, expected=MADE_WITH)
    assert "truncated" in dataset.verify(path)[0]


def test_missing_files_and_a_damaged_index(tmp_path):
    path = _write(tmp_path, [make()])
    with pytest.raises(FileNotFoundError, match=r"other\.json"):
        dataset.RecordReader(tmp_path / "other", expected=None)
    index = json.loads(dataset.index_path(path).read_text())
    for change, message in (
        ({"version": 1}, "version 1; make the records again"),
        ({"count": 2}, "expected 2 records, its shards hold 1"),
        ({"count": -2}, "expected -2 records"),
        ({"more": 2}, "unknown field `more`"),
        ({"records": [{"count": -1, "bytes": 0, "sha256": ""}]}, "Expected `int` >= 0"),
    ):
        dataset.index_path(path).write_text(json.dumps(index | change))
        with pytest.raises(ValueError, match=rf"visual\.json: .*{message}"):
            dataset.RecordReader(path, expected=None)
    dataset.index_path(path).write_text(json.dumps(index))
    for end in (".ids", "-00000-of-00001.array_record"):
        (tmp_path / f"visual{end}").rename(tmp_path / "away")
        with pytest.raises(FileNotFoundError, match=f"visual{end}"):
            dataset.RecordReader(path, expected=None)
        (tmp_path / "away").rename(tmp_path / f"visual{end}")
    (tmp_path / "visual.ids").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"visual\.ids: expected 16 bytes .*got 5"):
        dataset.RecordReader(path, expected=None)


def test_a_count_that_the_shard_does_not_hold_is_named(tmp_path):
    path = _write(tmp_path, [make()])
    index = dataset.RecordReader(path, expected=None).index
    shard = msgspec.structs.replace(index.records[0], count=2)
    wrong = msgspec.structs.replace(index, count=2, records=(shard,))
    dataset.index_path(path).write_bytes(msgspec.json.encode(wrong))
    (tmp_path / "visual.ids").write_bytes(bytes(32))
    with pytest.raises(ValueError, match="expected 2 entries by the index, found 1"):
        dataset.RecordReader(path, expected=None)[0]


def test_limits_hold_on_reading(tmp_path):
    path = _write(tmp_path, [make()])
    for limits, message in (
        (schema.LimitsConfig(record_bytes=50), r"at most 50 bytes \(limits.record_bytes\)"),
        (schema.LimitsConfig(audio_seconds=0.1), r"at most 0.1 s \(limits.audio_seconds\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset.RecordReader(path, expected=None, limits=limits)[0]
    small = schema.LimitsConfig(image_pixels=30)
    assert dataset.verify(path, small) == [
        f"{path} image 0: image: at most 30 pixels (limits.image_pixels), got 7x5 = 35; "
        "shrink it or raise the limit"
    ]


def test_an_empty_dataset(tmp_path):
    reader = dataset.RecordReader(_write(tmp_path, []), expected=MADE_WITH)
    assert len(reader) == 0 and list(reader) == [] and dataset.verify(reader.path) == []
    with pytest.raises(ValueError, match="there is none"):
        reader.find("r0")


def test_records_of_another_codec_are_refused(tmp_path):
    path = _write(tmp_path, [make()])
    other = dataset.Identity(codec="d" * 64, tokenizer=MADE_WITH.tokenizer)
    with pytest.raises(ValueError, match="made with codec cccccccccccc, this run has dddddddddddd"):
        dataset.RecordReader(path, expected=other)
    assert dataset.RecordReader(path, expected=dataset.Identity(tokenizer="t" * 64))[0] == make()


def test_identity_hashes_the_files(tmp_path):
    for name in ("codec", "tokenizer"):
        (tmp_path / name).write_text(name)
    frozen = schema.FrozenFiles(
        moshi="", siglip="", codec=str(tmp_path / "codec"), tokenizer=str(tmp_path / "tokenizer")
    )
    first = dataset.identity(frozen)
    assert first == dataset.identity(dataclasses.replace(frozen, moshi="elsewhere"))
    (tmp_path / "codec").write_text("another")
    second = dataset.identity(frozen)
    assert second.tokenizer == first.tokenizer and second.codec != first.codec
