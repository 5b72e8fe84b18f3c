import copy
import dataclasses
import pickle
import sqlite3
import struct
import zlib
from concurrent import futures

import numpy as np
import one_dataset
import pytest
from safetensors import numpy as numpy_io

from mvjax.config import schema
from mvjax.data.records import dataset, index, shards
from mvjax.digits import frozen_models


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


def _files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    items = [one_dataset.record(0), one_dataset.record(1, frames=7)]
    items.append(dataset.Record("text", ("place",), items[0].turns))
    reader = dataset.RecordReader(
        one_dataset.write(tmp_path, items), expected=one_dataset.MADE_WITH
    )
    assert list(reader) == items
    assert reader.index.count == len(reader) == 3
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(reader[1].array(), rng.integers(0, 256, (4, 7)))
    assert reader[1].array().dtype == np.uint16
    assert reader[2].array().shape == (0, 0) and reader[2].frames == 0
    assert [reader[n].frames for n in (0, 1)] == [reader[n].array().shape[1] for n in (0, 1)]
    assert dataset.verify(reader.path) == []
    with pytest.raises(IndexError, match="record 3"):
        reader[3]
    with pytest.raises(IndexError, match="record -1"):
        reader[-1]


def test_shards_by_bytes_and_a_new_writing_leaves_no_old_file(tmp_path):
    items = [one_dataset.record(i, frames=5 + i) for i in range(7)]
    path = one_dataset.write(tmp_path, items, shard_bytes=500)
    index = dataset.RecordReader(path, expected=None).index
    assert len(index.records) > 2 and len(index.images) > 1
    assert sum(shard.count for shard in index.records) == 7
    assert f"visual-00001-of-{len(index.records):05d}.array_record" in _files(tmp_path)
    assert list(dataset.RecordReader(path, expected=None)) == items
    one_dataset.write(
        tmp_path, items[:2], name="visual-00001"
    )  # another dataset, like a shard by name
    one_dataset.write(tmp_path, items[2:4])
    ends = ("-00000-of-00001.array_record", ".images-00000-of-00001.array_record", ".ids", ".json")
    names = ("visual", "visual-00001")
    assert _files(tmp_path) == sorted(name + end for name in names for end in ends)
    assert [r.id for r in dataset.RecordReader(path, expected=None)] == ["r2", "r3"]
    assert dataset.verify(path) == [] == dataset.verify(tmp_path / "visual-00001")


def test_an_image_of_many_dialogues_is_stored_once(tmp_path):
    items = [one_dataset.record(i, image=one_dataset.picture(i % 3)) for i in range(9)]
    reader = dataset.RecordReader(one_dataset.write(tmp_path, items), expected=None)
    assert [shard.count for shard in reader.index.images] == [3]
    assert [reader.stored(i).image for i in range(9)] == [0, 1, 2] * 3
    assert [record.image for record in reader] == [one_dataset.picture(i % 3) for i in range(9)]


def test_ids_lead_to_records_without_a_scan(tmp_path, monkeypatch):
    items = [dataset.Record(f"text/{i:03d}", (), one_dataset.record().turns) for i in range(300)]
    reader = dataset.RecordReader(one_dataset.write(tmp_path, items), expected=None)
    read = []
    stored = reader.stored
    monkeypatch.setattr(reader, "stored", lambda i: read.append(i) or stored(i))
    assert [reader.find(f"text/{i:03d}") for i in (0, 299, 123)] == [0, 299, 123]
    assert read == [0, 299, 123]
    with pytest.raises(ValueError, match=r"visual: expected a record with id 'text/300'"):
        reader.find("text/300")


def test_a_reader_is_shared_by_threads_and_copied_to_processes(tmp_path):
    items = [one_dataset.record(i) for i in range(40)]
    reader = dataset.RecordReader(
        one_dataset.write(tmp_path, items, shard_bytes=300), expected=one_dataset.MADE_WITH
    )
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
        one_dataset.write(tmp_path, [one_dataset.record(0), one_dataset.record(1, **changes)])
    assert _files(tmp_path) == []


def test_ids_are_unique(tmp_path):
    with pytest.raises(ValueError, match="id 'r0' used twice"):
        one_dataset.write(tmp_path, [one_dataset.record(0), one_dataset.record(0)])


def test_a_refused_record_may_be_skipped(tmp_path):
    with dataset.RecordWriter(tmp_path / "visual", one_dataset.MADE_WITH) as writer:
        for i in (0, 0, 1):
            try:
                writer.add(one_dataset.record(i))
            except ValueError as error:
                assert "used twice" in str(error)
    assert writer.index.count == 2
    assert dataset.verify(tmp_path / "visual") == []


def test_a_failed_writing_leaves_the_earlier_dataset(tmp_path):
    path = one_dataset.write(tmp_path, [one_dataset.record(0), one_dataset.record(1)])
    before = _files(tmp_path)
    with pytest.raises(sqlite3.Error), dataset.RecordWriter(path, one_dataset.MADE_WITH) as writer:
        writer.add(one_dataset.record(2))
        raise sqlite3.Error
    assert _files(tmp_path) == before and dataset.verify(path) == []
    assert dataset.RecordReader(path, expected=None)[0] == one_dataset.record(0)


def test_codes_need_the_identity_of_their_codec(tmp_path):
    with pytest.raises(ValueError, match="identity of their codec"):
        dataset.write(tmp_path / "visual", [one_dataset.record()], dataset.Identity())
    text = dataset.Record("text", (), one_dataset.record().turns, image=one_dataset.picture())
    dataset.write(tmp_path / "text", [text], dataset.Identity())
    assert dataset.RecordReader(tmp_path / "text", expected=one_dataset.MADE_WITH)[0] == text


def test_a_name_with_a_suffix_is_refused(tmp_path):
    for name in ("visual.array_record", "visual.json", "my records"):
        with pytest.raises(ValueError, match="without a suffix"):
            dataset.RecordWriter(tmp_path / name, one_dataset.MADE_WITH)


def test_limits_hold_on_reading(tmp_path):
    path = one_dataset.write(tmp_path, [one_dataset.record()])
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


def test_nothing_never_replaces_a_dataset(tmp_path):
    with pytest.raises(ValueError, match="visual: expected at least one record, got none"):
        one_dataset.write(tmp_path, [])
    assert _files(tmp_path) == []
    path = one_dataset.write(tmp_path, [one_dataset.record(0)])
    before = _files(tmp_path)
    with pytest.raises(ValueError, match="nothing is written"):
        one_dataset.write(tmp_path, [])
    assert _files(tmp_path) == before and dataset.verify(path) == []


@pytest.mark.parametrize("part", ["visual", "visual.images", "ids"])
def test_a_disk_that_is_full_leaves_the_earlier_dataset(tmp_path, monkeypatch, part):
    path = one_dataset.write(tmp_path, [one_dataset.record(0)])
    before = _files(tmp_path)
    closed = shards.ShardWriter.close

    def full(*_):
        raise OSError(28, "No space left on device")

    def close(self):
        (full if self._stem.name == part else closed)(self)

    if part == "ids":
        monkeypatch.setattr(index, "write_ids", full)
    else:
        monkeypatch.setattr(shards.ShardWriter, "close", close)
    with pytest.raises(OSError, match="No space"):
        one_dataset.write(tmp_path, [one_dataset.record(1)])
    assert _files(tmp_path) == before and dataset.verify(path) == []
    assert dataset.RecordReader(path, expected=None)[0] == one_dataset.record(0)


def test_records_of_another_codec_are_refused(tmp_path):
    path = one_dataset.write(tmp_path, [one_dataset.record()])
    other = dataset.Identity(codec="d" * 64, tokenizer=one_dataset.MADE_WITH.tokenizer)
    with pytest.raises(ValueError, match="made with codec cccccccccccc, this run has dddddddddddd"):
        dataset.RecordReader(path, expected=other)
    assert (
        dataset.RecordReader(path, expected=dataset.Identity(tokenizer="t" * 64))[0]
        == one_dataset.record()
    )


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


def test_records_stay_valid_when_only_the_decoder_of_their_codec_was_trained_further(tmp_path):
    codecs = [tmp_path / f"{name}.safetensors" for name in ("first", "further", "other")]
    values = {"decoder": np.ones(3, np.float32)}
    numpy_io.save_file(values, codecs[0])
    frozen = [dataclasses.replace(frozen_models.FROZEN, codec=str(path)) for path in codecs]
    first = index.identity(frozen[0])
    numpy_io.save_file(
        {"decoder": 2 * values["decoder"]}, codecs[1], {index.ENCODES_AS: first.codec}
    )
    numpy_io.save_file({"decoder": 3 * values["decoder"]}, codecs[2], {"about": "nothing"})
    assert index.identity(frozen[1]) == first != index.identity(frozen[2])
