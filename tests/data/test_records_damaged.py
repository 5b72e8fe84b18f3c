"""Damaged datasets: which record, image or file is wrong is named; the others can be read."""

import json

import msgspec
import numpy as np
import one_dataset
import pytest

from mvjax.data.records import dataset, record, shards
from mvjax.data.records import index as index_lib


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[place if isinstance(place, int) else data.index(place)] ^= 255
    path.write_bytes(data)


def test_a_flipped_byte_spoils_one_record_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(shards._WRITER, "compressed", shards._WRITER["plain"])
    path = one_dataset.write(
        tmp_path, [one_dataset.record(i, image=one_dataset.picture()) for i in range(4)]
    )
    _flip(tmp_path / "visual-00000-of-00001.array_record", b"r2")
    reader = dataset.RecordReader(path, expected=one_dataset.MADE_WITH)
    with pytest.raises(ValueError, match=r"visual record 2: .*array_record entry 2"):
        reader[2]
    assert [reader[i].id for i in (0, 1, 3)] == ["r0", "r1", "r3"]
    found = dataset.verify(path)
    assert len(found) == 2 and "SHA-256" in found[0] and "record 2" in found[1]


def test_a_spoilt_image_is_named_by_record_and_by_verify(tmp_path):
    path = one_dataset.write(tmp_path, [one_dataset.record(i) for i in range(3)])
    _flip(tmp_path / "visual.images-00000-of-00001.array_record", one_dataset.picture(1)[-40:-20])
    reader = dataset.RecordReader(path, expected=None)
    with pytest.raises(ValueError, match="visual image 1: "):
        reader[1]
    assert reader.stored(1).id == "r1" and reader[2] == one_dataset.record(2)
    assert any("visual image 1" in line for line in dataset.verify(path))


def test_a_record_of_an_image_that_is_not_there_is_named(tmp_path):
    path = one_dataset.write(tmp_path, [one_dataset.record()])
    writer = shards.ShardWriter(path, shard_bytes=1 << 20, compressed=True)
    writer.write(record.encode(one_dataset.record(), 1))
    writer.close()
    index = msgspec.structs.replace(index_lib.read(path), records=writer.publish())
    index_lib.write(path, index)
    with pytest.raises(ValueError, match="image: expected a number below 1, got 1"):
        dataset.RecordReader(path, expected=None)[0]


def test_wrong_ids_are_found(tmp_path):
    path = one_dataset.write(tmp_path, [one_dataset.record(i) for i in range(3)])
    table = np.fromfile(tmp_path / "visual.ids", "<u8").reshape(2, 3)
    table[1] = table[1][::-1]
    table.tofile(tmp_path / "visual.ids")
    found = dataset.verify(path)
    assert len(found) == 2 and "SHA-256" in found[0] and "does not lead to the ids" in found[1]


@pytest.mark.parametrize("kind", ["-", ".images-"])
def test_a_truncated_shard_is_named(tmp_path, kind):
    path = one_dataset.write(tmp_path, [one_dataset.record(i) for i in range(4)])
    shard = tmp_path / f"visual{kind}00000-of-00001.array_record"
    shard.write_bytes(shard.read_bytes()[:-500])
    with pytest.raises(ValueError, match=rf"{shard.name}: expected \d+ bytes .*truncated"):
        dataset.RecordReader(path, expected=one_dataset.MADE_WITH)
    assert "truncated" in dataset.verify(path)[0]


def test_missing_files_and_a_damaged_index(tmp_path):
    path = one_dataset.write(tmp_path, [one_dataset.record()])
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
    path = one_dataset.write(tmp_path, [one_dataset.record()])
    index = dataset.RecordReader(path, expected=None).index
    shard = msgspec.structs.replace(index.records[0], count=2)
    wrong = msgspec.structs.replace(index, count=2, records=(shard,))
    dataset.index_path(path).write_bytes(msgspec.json.encode(wrong))
    (tmp_path / "visual.ids").write_bytes(bytes(32))
    with pytest.raises(ValueError, match="expected 2 entries by the index, found 1"):
        dataset.RecordReader(path, expected=None)[0]
