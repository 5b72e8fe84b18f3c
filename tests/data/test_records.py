import dataclasses

import numpy as np
import pytest

from mvjax import config
from mvjax.data import records

MADE_WITH = records.Identity(codec="c" * 64, tokenizer="t" * 64)


def _record(i=0, *, frames=5, codebooks=4, **changes):
    rng = np.random.default_rng(i)
    codes = rng.integers(0, 256, (codebooks, frames))
    fields = {
        "id": f"r{i}",
        "kinds": ("digit",),
        "turns": (records.Turn("user", "what is it"), records.Turn("assistant", "a seven")),
        "facts": {"digit": 7, "colour": "red", "place": "top left"},
        "image": rng.bytes(200),
        "words": (records.Word("a", 0.05, 0.1), records.Word("seven", 0.1, 0.33)),
        "codes": records.encode_codes(codes),
        "codebooks": codebooks,
        "seconds": frames * 0.08,
    }
    return records.Record(**(fields | changes))


def _write(folder, items, name="visual"):
    path = folder / f"{name}.array_record"
    records.write(path, items, MADE_WITH)
    return path


def test_round_trip(tmp_path):
    items = [_record(0), _record(1, frames=7), _record(2, codes=b"", codebooks=0, seconds=0.0)]
    items[2] = records.Record("text", ("place",), items[0].turns)
    reader = records.Reader(_write(tmp_path, items), expected=MADE_WITH)
    assert list(reader) == items
    assert reader.index.count == len(reader) == 3
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(reader[1].array(), rng.integers(0, 256, (4, 7)))
    assert reader[1].array().dtype == np.uint16
    assert reader[2].array().shape == (0, 0)
    assert records.verify(reader.path) == []
    with pytest.raises(IndexError, match="record 3"):
        reader[3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id: expected a name"),
        ({"turns": ()}, "turns: expected at least one"),
        ({"turns": (records.Turn("robot", "hello"),)}, "turn 0: .*robot"),
        ({"codes": b"\0" * 39}, "codes: expected 40 bytes .* got 39"),
        ({"seconds": float("nan")}, "seconds: expected a duration"),
        ({"words": (records.Word("late", 0.3, 0.9),)}, "word 0: expected times within"),
    ],
)
def test_invalid_records_are_not_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"visual.array_record record 1 .*{message}"):
        _write(tmp_path, [_record(0), _record(1, **changes)])
    assert not (tmp_path / "visual.array_record").exists()


def test_ids_are_unique(tmp_path):
    with pytest.raises(ValueError, match="id 'r0' used twice"):
        _write(tmp_path, [_record(0), _record(0)])


def test_a_flipped_byte_spoils_one_record_and_is_named(tmp_path):
    path = _write(tmp_path, [_record(i) for i in range(4)])
    data = bytearray(path.read_bytes())
    data[data.index(b"r2")] ^= 255
    path.write_bytes(data)
    reader = records.Reader(path, expected=MADE_WITH)
    with pytest.raises(ValueError, match=r"visual.array_record record 2: .*cannot read"):
        reader[2]
    assert [reader[i].id for i in (0, 1, 3)] == ["r0", "r1", "r3"]
    found = records.verify(path)
    assert len(found) == 2 and "SHA-256" in found[0] and "record 2" in found[1]


def test_a_truncated_file_is_named(tmp_path):
    path = _write(tmp_path, [_record(i) for i in range(4)])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"visual.array_record: expected \d+ bytes .*truncated"):
        records.Reader(path, expected=MADE_WITH)
    assert "truncated" in records.verify(path)[0]


def test_missing_files_and_a_damaged_index(tmp_path):
    path = _write(tmp_path, [_record()])
    with pytest.raises(FileNotFoundError, match=r"other\.array_record"):
        records.Reader(tmp_path / "other.array_record", expected=None)
    records.index_path(path).write_text("{}")
    with pytest.raises(ValueError, match=r"visual\.json: expected an index"):
        records.Reader(path, expected=None)
    records.index_path(path).unlink()
    with pytest.raises(FileNotFoundError, match=r"visual\.json"):
        records.Reader(path, expected=None)


def test_records_of_another_codec_are_refused(tmp_path):
    path = _write(tmp_path, [_record()])
    other = records.Identity(codec="d" * 64, tokenizer=MADE_WITH.tokenizer)
    with pytest.raises(ValueError, match="made with codec cccccccccccc, this run has dddddddddddd"):
        records.Reader(path, expected=other)


def test_identity_hashes_the_files(tmp_path):
    for name in ("codec", "tokenizer"):
        (tmp_path / name).write_text(name)
    frozen = config.FrozenFiles(
        moshi="", siglip="", codec=str(tmp_path / "codec"), tokenizer=str(tmp_path / "tokenizer")
    )
    first = records.identity(frozen)
    assert first == records.identity(dataclasses.replace(frozen, moshi="elsewhere"))
    (tmp_path / "codec").write_text("another")
    second = records.identity(frozen)
    assert second.tokenizer == first.tokenizer and second.codec != first.codec
