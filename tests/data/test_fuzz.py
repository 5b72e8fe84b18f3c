"""Damaged files are decoded or refused by a listed error, by every decoder: no crash, hang or full memory."""

import io
import json
import warnings

import fuzzing
import msgspec
import numpy as np
import pytest
from PIL import Image

from mvjax.config import schema
from mvjax.data import images
from mvjax.data.ingest import items, sources
from mvjax.data.records import dataset, record, shards
from mvjax.data.speech import spoken

COUNTS = [fuzzing.SHORT, pytest.param(fuzzing.LONG, marks=pytest.mark.long)]
LIMITS = schema.LimitsConfig(image_pixels=10**6, audio_seconds=60.0)
MADE_WITH = dataset.Identity(codec="c" * 64, tokenizer="t" * 64)


def _pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (23, 31, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    deep = Image.fromarray(rng.integers(0, 2**16, (23, 31), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    frames = {"save_all": True, "append_images": [picture.rotate(90)]}
    found = []
    for image, form, options in (
        (picture, "PNG", {"exif": exif, "icc_profile": rng.bytes(50)}),
        (picture.convert("RGBA"), "PNG", {}),
        (picture.quantize(16), "PNG", {"transparency": 3}),
        (deep, "PNG", {}),
        (picture, "JPEG", {"exif": exif}),
        (picture, "JPEG", {"progressive": True, "optimize": True}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "WEBP", {"exif": exif}),
        (picture.convert("RGBA"), "WEBP", {"lossless": True}),
        (picture, "WEBP", frames),
        (picture, "GIF", frames),
        (picture, "BMP", {}),
        (picture.quantize(16), "BMP", {}),
        (picture, "TIFF", {}),
        (picture, "TIFF", {"compression": "tiff_lzw"}),
        (picture, "TIFF", {"compression": "jpeg"}),
        (picture.convert("1"), "TIFF", {"compression": "group4"}),
    ):
        file = io.BytesIO()
        image.save(file, format=form, **options)
        found.append(file.getvalue())
    return found


def _record(i=0, **changes) -> dataset.Record:
    fields = {
        "id": f"r{i}",
        "kinds": ("LOC", "NUM"),
        "turns": (dataset.Turn("user", "what is it"), dataset.Turn("assistant", "a sëven")),
        "facts": {"digit": 7, "colour": "red"},
        "words": (dataset.Word("a", 0.05, 0.1), dataset.Word("sëven", 0.1, 0.33)),
        "codes": np.random.default_rng(i).bytes(40),
        "codebooks": 4,
        "seconds": 0.4,
    }
    return dataset.Record(**(fields | changes))


@pytest.mark.parametrize("count", COUNTS)
def test_images(count):
    def check(data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in training, where Pillow's remain warnings
            pixels = images.decode(data, limits=LIMITS)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
        assert pixels.size <= 3 * LIMITS.image_pixels

    refused = fuzzing.fuzz(_pictures(), check, count)
    assert count // 4 < refused < count


@pytest.mark.parametrize("count", COUNTS)
def test_records(count):
    def check(data):
        row = record.decode(data, LIMITS)
        if not record.problems(row, LIMITS):
            assert row.array().size * 2 == len(row.codes)

    text = dataset.Record("t", (), (dataset.Turn("user", "é"),))
    seeds = [record.encode(_record(), 70_000), record.encode(text, None)]
    refused = fuzzing.fuzz(seeds, check, count)
    assert count // 4 < refused < count


@pytest.mark.parametrize("count", COUNTS)
def test_indexes(count, tmp_path):
    path = tmp_path / "visual"
    dataset.write(path, [_record(0), _record(1, image=_pictures()[0])], MADE_WITH)
    index = dataset.index_path(path)

    def check(data):
        index.write_bytes(data)
        reader = dataset.RecordReader(path, expected=MADE_WITH)
        assert len(reader) == 2

    whole = index.read_bytes()
    seeds = [whole, json.dumps(json.loads(whole)).encode()]
    refused = fuzzing.fuzz(seeds, check, count, errors=(ValueError, FileNotFoundError))
    assert count // 4 < refused < count


@pytest.mark.parametrize("count", COUNTS)
def test_shards(count, tmp_path):
    writer = shards.ShardWriter(tmp_path / "visual", shard_bytes=1 << 30, compressed=True)
    entries = [b"entry %d" % i * 40 for i in range(5)]
    for entry in entries:
        writer.write(entry)
    writer.close()
    (shard,) = writer.publish()
    (path,) = shards.paths(tmp_path / "visual", 1)

    def check(data):
        path.write_bytes(data)
        sized = msgspec.structs.replace(shard, bytes=len(data))
        reader = shards.ShardReader(tmp_path / "visual", [sized])
        assert [reader[i] for i in range(len(reader))] == entries

    refused = fuzzing.fuzz([path.read_bytes()], check, count)
    assert count // 8 < refused <= count


@pytest.mark.parametrize("count", COUNTS)
def test_ids(count, tmp_path):
    path = tmp_path / "visual"
    dataset.write(path, [_record(i) for i in range(9)], MADE_WITH)
    ids = path.with_suffix(".ids")

    def check(data):
        ids.write_bytes(data)
        reader = dataset.RecordReader(path, expected=None)
        for i in (0, 4):
            assert reader.find(f"r{i}") == i

    refused = fuzzing.fuzz([ids.read_bytes()], check, count)
    assert count // 8 < refused <= count


def _sounds() -> list[bytes]:
    import soundfile

    rng = np.random.default_rng(0)
    found = []
    for form, subtype, rate in (
        ("WAV", "PCM_16", 24_000),
        ("WAV", "PCM_24", 16_000),
        ("WAV", "FLOAT", 8_000),
        ("WAVEX", "PCM_16", 24_000),
        ("FLAC", "PCM_16", 24_000),
        ("OGG", "VORBIS", 24_000),
        ("OGG", "OPUS", 24_000),
        ("MP3", "MPEG_LAYER_III", 24_000),
    ):
        file = io.BytesIO()
        samples = rng.uniform(-0.5, 0.5, (1300, 2))
        soundfile.write(file, samples, rate, format=form, subtype=subtype)
        found.append(file.getvalue())
    return found


@pytest.mark.parametrize("count", COUNTS)
def test_audio(count):
    def check(data):
        samples = spoken.read_audio(data, channels=2, max_seconds=LIMITS.audio_seconds)
        assert samples.shape[0] == 2 and samples.shape[1] <= 24_000 * LIMITS.audio_seconds
        assert samples.dtype == np.float32 and np.isfinite(samples).all()

    refused = fuzzing.fuzz(_sounds(), check, count)
    assert count // 8 < refused < count


class _Caption(msgspec.Struct):
    id: str
    text: str
    number: int = 0


class _Picture(msgspec.Struct):
    bytes: bytes
    path: str


class _Pictured(msgspec.Struct):
    id: int
    text: str | None
    image: _Picture


CAPTIONS = [_Caption(f"é{i}", "a dog", i) for i in range(4)]


@pytest.mark.parametrize("count", COUNTS)
def test_released_json(count, tmp_path):
    path = tmp_path / "captions.json"
    decoder = msgspec.json.Decoder(list[_Caption])

    def check(data):
        path.write_bytes(data)
        sources.decode_json(path, decoder)

    refused = fuzzing.fuzz([msgspec.json.encode(CAPTIONS)], check, count)
    assert count // 4 < refused < count


@pytest.mark.parametrize("count", COUNTS)
def test_released_json_lines(count, tmp_path):
    path = tmp_path / "captions.jsonl"
    decoder = msgspec.json.Decoder(_Caption)
    skips = items.SkippedItems()

    def check(data):
        path.write_bytes(data)
        assert len(list(sources.json_lines(path, decoder, skips))) <= data.count(b"\n") + 1

    fuzzing.fuzz([b"\n".join(map(msgspec.json.encode, CAPTIONS))], check, count, errors=())
    assert skips.counts.total() > count // 4


@pytest.mark.parametrize("count", COUNTS)
def test_released_parquet(count, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "captions.parquet"
    skips = items.SkippedItems()
    pictures = [{"bytes": picture[:300], "path": "é"} for picture in _pictures()[:4]]
    table = pyarrow.table(
        {"id": list(range(4)), "text": ["a dog", "é", "", None], "image": pictures}
    )
    seeds = []
    for compression in ("none", "snappy", "zstd"):
        parquet.write_table(table, path, compression=compression, row_group_size=2)
        seeds.append(path.read_bytes())

    def check(data):
        path.write_bytes(data)
        list(sources.parquet_rows([path], _Pictured, skips))

    refused = fuzzing.fuzz(seeds, check, count)
    assert refused + skips.counts.total() > count // 8
