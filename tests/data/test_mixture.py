import dataclasses
import logging
import re

import msgspec
import numpy as np
import pytest

from mvjax import run_folder, types
from mvjax.config import schema
from mvjax.data import collate as batch
from mvjax.data import examples, images, mixture, streams
from mvjax.data.records import bad_records, shards
from mvjax.data.records import dataset as dataset_lib

CODES, FRAMES, SIZE = 50, 40, 16
VISUAL, TALK = 20, 9  # records; visual codes are below 25, talk codes from 25 on


def _record(i, name, *, low=0, image=True, spoken=True):
    rng = np.random.default_rng([i, low])
    frames = int(rng.integers(12, 30))
    codes = rng.integers(low, low + CODES // 2, (4, frames)) if spoken else np.zeros((0, 0))
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    end = (frames - 6) * 0.08
    words = (
        dataset_lib.Word("the", end - 0.3, end - 0.1),
        dataset_lib.Word("digit", end - 0.1, end),
    )
    return dataset_lib.Record(
        id=f"{name}-{i}",
        kinds=("digit",),
        turns=(
            dataset_lib.Turn("user", "what digit is this"),
            dataset_lib.Turn("assistant", "the digit is seven" if i % 2 else "i see the digit six"),
        ),
        image=images.encode_png(pixels) if image else None,
        words=words if spoken else None,
        codes=dataset_lib.encode_codes(codes),
        codebooks=4 if spoken else 0,
        seconds=frames * 0.08 if spoken else 0.0,
    )


@pytest.fixture
def config(tmp_path, monkeypatch):
    # So that `_spoil` finds a record by its id.
    monkeypatch.setitem(shards._WRITER, "compressed", shards._WRITER["plain"])
    codec = tmp_path / "codec"
    codec.write_text("a codec")
    return make_config(tmp_path / "records", codec)


def make_config(root, codec):
    model = schema.ModelConfig(
        siglip=schema.SiglipConfig(image_size=SIZE, patch=8),
        audio_vocab=CODES,
        codebooks_out=2,
        delays=(0, 0, 1, 0, 1),
    )
    return schema.Config(
        frozen=schema.FrozenFiles(
            moshi="",
            siglip="",
            codec=str(codec),
            tokenizer="package:mvjax.digits/assets/tokenizer.model",
        ),
        model=model,
        data=schema.DataConfig(
            root=str(root),
            prepare=_prepare(codec),
            speech=(schema.Source("visual"),),
            speechless=(schema.Source("text", 3.0), schema.Source("visual", 1.0)),
            small_talk=(schema.Source("talk"),),
            speech_rows=4,
            speechless_rows=12,
            speech_frames=FRAMES,
            speechless_tokens=24,
        ),
    )


def _prepare(codec):
    def prepare(root):
        frozen = schema.FrozenFiles(
            moshi="",
            siglip="",
            codec=str(codec),
            tokenizer="package:mvjax.digits/assets/tokenizer.model",
        )
        made_with = dataset_lib.identity(frozen)
        for name, items in (
            ("visual", [_record(i, "visual") for i in range(VISUAL)]),
            ("text", [_record(i, "text", spoken=False) for i in range(30)]),
            ("talk", [_record(i, "talk", low=CODES // 2, image=False) for i in range(TALK)]),
        ):
            dataset_lib.write(root / name, items, made_with)

    return prepare


def _data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def _equal(a, b):
    for x, y in zip((*a.speech, *a.speechless), (*b.speech, *b.speechless), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_shapes_and_what_absent_means(config):
    speech, speechless = mixture.batches(config)[3]
    assert speech.codes.shape == (4, 5, FRAMES) and speechless.codes.shape == (12, 5, 24)
    assert speech.codes.dtype == np.int32 and speech.images.shape == (4, SIZE, SIZE, 3)
    for part in (speech, speechless):
        assert part.has_image.all() and part.images.any()
        assert not part.loss_mask[part.codes[:, 0] == types.ZERO_TOKEN].any()
    np.testing.assert_array_equal(speech.loss_mask, speech.codes[:, 0] != types.ZERO_TOKEN)
    np.testing.assert_array_equal(speech.loss_mask, speech.codes[:, 4] != types.ZERO_TOKEN)
    assert (speechless.codes[:, 1:] == types.ZERO_TOKEN).all()
    assert (speechless.codes[:, 0, 0] == streams.BOS).all()


def test_same_seed_same_bytes_and_other_seed_other(config):
    first, again = mixture.batches(config), mixture.batches(config)
    for step in (0, 7, 2):
        _equal(first[step], again[step])
    reseeded = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1))
    other = mixture.batches(reseeded)[0]
    assert not np.array_equal(first[0].speech.codes, other.speech.codes)
    assert not np.array_equal(first[0].speech.codes, first[1].speech.codes)


def test_processes_share_the_global_batch(config):
    whole = mixture.batches(config)[5]
    shares = [mixture.batches(config, process_index=p, process_count=4)[5] for p in range(4)]
    joined = types.Batch(
        *(types.Part(*(np.concatenate(arrays) for arrays in zip(*parts))) for parts in zip(*shares))
    )
    _equal(whole, joined)


def test_ids_of_a_batch(config):
    whole = mixture.batches(config)
    ids = whole.ids(5)
    assert [len(names) for names in ids.values()] == [4, 12] and list(ids) == [
        "speech",
        "speechless",
    ]
    shares = [mixture.batches(config, process_index=p, process_count=4).ids(5) for p in range(4)]
    assert ids == {name: [row for share in shares for row in share[name]] for name in ids}
    assert whole.ids(6) != ids


def test_reading_ahead_changes_nothing(config):
    plain, ahead = mixture.batches(config), mixture.batches(_data(config, workers=2))
    for step in (0, 1, 2, 9, 3):
        _equal(plain[step], ahead[step])


def test_every_record_once_an_epoch_and_sources_by_weight(config):
    config = _data(config, p_concat=0.0, speechless=(schema.Source("text"),))
    seen = []
    mixture.ensure_records(config.data)
    build = examples.ExampleBuilder(config, bad_records.BadRecords(0))
    source = build.source("visual", seed=3, spoken=True)
    for epoch in range(2):
        seen.append([source[epoch * VISUAL + i].record.id for i in range(VISUAL)])
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(f"visual-{i}" for i in range(VISUAL))
    assert seen[0] != seen[1]


def test_context_switch_keeps_the_answer_and_the_image(config):
    batches = mixture.batches(_data(config, p_concat=1.0))
    originals = {}
    for i in range(VISUAL):
        record = _record(i, "visual")
        originals[images.decode(record.image).tobytes()] = record
    before, after, shorter = [], [], 0
    for step in range(30):
        part = batches[step].speech
        for codes, pixels in zip(part.codes, part.images):
            record = originals[pixels.tobytes()]
            inside = np.flatnonzero((codes[1] >= 0) & (codes[1] < CODES // 2))
            assert (np.diff(inside) == 1).all()
            full, keep = record.array(), batch.last_word_frame(record)
            assert keep <= len(inside) <= full.shape[1]
            np.testing.assert_array_equal(codes[1:, inside], full[:, : len(inside)])
            before.append(inside[0])
            after.append((codes[1] >= 0).sum() - inside[-1] - 1)
            shorter += len(inside) < full.shape[1]
    assert len(set(before)) > 5 and len(set(after)) > 5 and shorter > 10
    plain = mixture.batches(_data(config, p_concat=0.0))
    assert all((plain[s].speech.codes[:, 1] < CODES // 2).all() for s in range(10))


def test_unrelated_talk_need_not_see_the_image(config):
    fields = {"p_concat": 1.0, "small_talk_image": "absent"}
    part = mixture.batches(_data(config, **fields))[4].speech
    whole = mixture.batches(_data(config, p_concat=1.0))[4].speech
    np.testing.assert_array_equal(part.codes, whole.codes)
    assert part.has_image.shape == part.loss_mask.shape and whole.has_image.shape == (4,)
    visual = (part.codes[:, 1] >= 0) & (part.codes[:, 1] < CODES // 2)
    np.testing.assert_array_equal(part.has_image, visual)
    text = mixture.batches(_data(config, **fields))[4].speechless
    assert text.has_image.any(axis=1).all()


def test_half_the_rows_switch(config):
    batches = mixture.batches(_data(config, p_concat=0.5))
    switched = [
        (row >= CODES // 2).any() for s in range(60) for row in batches[s].speech.codes[:, 1]
    ]
    assert 0.35 < np.mean(switched) < 0.55  # a trim to nothing at both ends looks like no switch


def test_long_dialogues_are_cropped_at_random(config):
    config = _data(config, speech_frames=10, p_concat=1.0)
    batches = mixture.batches(config)
    parts = [batches[s].speech for s in range(5)]
    assert all(part.loss_mask.all() for part in parts)
    rng = np.random.default_rng(0)
    windows = [batch.crop(9, 4, rng) for _ in range(200)]
    assert {w.start for w in windows} == {0, 1, 2, 3, 4, 5}
    assert {w.stop - w.start for w in windows} == {4}
    assert batch.crop(9, 20, rng) == slice(0, 9)


def _spoil(config, name, numbers):
    (path,) = shards.paths(examples.record_path(config.data, name), 1)
    data = bytearray(path.read_bytes())
    for i in numbers:
        data[data.index(f"{name}-{i}".encode())] ^= 255
    path.write_bytes(data)


def test_bad_records_are_replaced_within_the_budget(config, caplog):
    mixture.ensure_records(config.data)
    _spoil(config, "visual", [4, 5])
    config = _data(config, bad_record_budget=2)
    with caplog.at_level(logging.WARNING):
        one, two = mixture.batches(config), mixture.batches(config)
        for step in range(8):
            _equal(one[step], two[step])
    logged = {re.search(r"visual\[(\d+)\]", m).group(1) for m in caplog.messages}
    assert logged == {"4", "5"}


def test_too_many_bad_records_stop_the_run_and_are_listed(config):
    mixture.ensure_records(config.data)
    _spoil(config, "visual", [4, 5])
    batches = mixture.batches(_data(config, bad_record_budget=1))
    with pytest.raises(ValueError, match=r"at most 1 bad records .* got 2") as caught:
        for step in range(20):
            batches[step]
    for number in (4, 5):
        assert f"visual[{number}]" in str(caught.value)


def test_a_bad_image_and_foreign_codes_are_bad_records(config, tmp_path):
    made_with = dataset_lib.identity(config.frozen)
    good = _record(0, "visual")
    items = [
        msgspec.structs.replace(good, image=good.image[: len(good.image) // 2]),
        msgspec.structs.replace(good, id="loud", codes=b"\xff" * len(good.codes)),
        dataset_lib.Record("mute", good.kinds, good.turns),
    ]
    path = examples.record_path(config.data, "visual")
    config.data.prepare(path.parent)
    dataset_lib.write(path, items, made_with)
    batches = mixture.batches(_data(config, bad_record_budget=3, speechless_rows=0))
    with pytest.raises(ValueError, match="every one is bad"):
        batches[0]
    batches = mixture.batches(_data(config, bad_record_budget=2, speechless_rows=0))
    with pytest.raises(ValueError, match="at most 2 bad records") as caught:
        batches[0]
    for problem in (
        f"image: {len(good.image) // 2} bytes",
        "loud: expected 4 codebooks",
        "mute: expected 4 codebooks",
    ):
        assert problem in str(caught.value)


def test_no_rows_of_one_part(config):
    batch = mixture.batches(_data(config, speechless_rows=0, speechless=()))[2]
    assert batch.speechless.codes.shape == (0, 5, 24) and len(batch.speech.codes) == 4


def test_clear_errors(config, tmp_path):
    with pytest.raises(ValueError, match="speech_rows 4 is not divisible by 3"):
        mixture.batches(config, process_count=3)
    with pytest.raises(ValueError, match="p_concat > 0 needs small_talk"):
        mixture.batches(_data(config, small_talk=()))
    with pytest.raises(ValueError, match="weight above 0"):
        mixture.batches(_data(config, speech=(schema.Source("visual", 0.0),)))
    with pytest.raises(FileNotFoundError, match=r"not there.*visual"):
        mixture.batches(_data(config, prepare=None, root=str(tmp_path / "empty")))
    batches = mixture.batches(config)
    with pytest.raises(IndexError, match="step >= 0"):
        batches[-1]
    (tmp_path / "codec").write_text("another codec")
    with pytest.raises(ValueError, match="made with codec"):
        mixture.batches(config)


def test_ids_name_the_records_and_what_of_them_is_in_the_row(config):
    found = mixture.batches(_data(config, p_concat=1.0))
    readers = {
        name: dataset_lib.RecordReader(examples.record_path(config.data, name), expected=None)
        for name in ("visual", "talk", "text")
    }
    for step in (0, 5):
        ids, part = found.ids(step), found[step].speech
        for name, codes in zip(ids["speech"], part.codes, strict=True):
            pieces = [
                re.fullmatch(r"(\w+)/(.+)\[(\d+):(\d+)\]", p).groups() for p in name.split("+")
            ]
            audio = [
                readers[dataset][readers[dataset].find(id)].array()[:, int(a) : int(b)]
                for dataset, id, a, b in pieces
            ]
            joined = np.concatenate(audio, axis=1)
            np.testing.assert_array_equal(codes[1:, : joined.shape[1]], joined)
            assert (codes[1:, joined.shape[1] :] == types.ZERO_TOKEN).all()
        assert all(re.fullmatch(r"(text|visual)/\w+-\d+", name) for name in ids["speechless"])
    shares = [mixture.batches(config, process_index=p, process_count=2).ids(5) for p in range(2)]
    whole = mixture.batches(config).ids(5)
    assert whole["speech"] == shares[0]["speech"] + shares[1]["speech"]


def test_bad_records_are_listed_once_and_count_over_resumes(config, tmp_path):
    mixture.ensure_records(config.data)
    _spoil(config, "visual", [4, 5])
    listing = tmp_path / "run" / run_folder.BAD_RECORDS
    config = _data(config, bad_record_budget=2)
    for _ in range(2):
        batches = mixture.batches(config, listing=listing)
        for step in range(8):
            batches[step]
    lines = [msgspec.json.decode(line) for line in listing.read_bytes().splitlines()]
    assert sorted(line["record"] for line in lines) == ["visual[4]", "visual[5]"]
    assert all(line["problem"] and line["id"] is None for line in lines)
    with listing.open("ab") as file:
        file.write(b'{"record": "cut sho')
    found = bad_records.BadRecords(2, listing)
    found.add("visual[4]", ValueError("again"))
    with pytest.raises(ValueError, match="at most 2 bad records"):
        found.add("visual[6]", ValueError("third"))


def test_words_that_the_tokenizer_does_not_know_are_bad_records(config, tmp_path):
    made_with = dataset_lib.identity(config.frozen)
    strange = dataset_lib.Turn("assistant", "the digit is \u4e03")
    items = [msgspec.structs.replace(_record(0, "text", spoken=False), turns=(strange,))]
    config.data.prepare(examples.record_path(config.data, "text").parent)
    dataset_lib.write(examples.record_path(config.data, "text"), items, made_with)
    listing = tmp_path / run_folder.BAD_RECORDS
    with pytest.raises(ValueError, match="text-0: the tokenizer does not know"):
        mixture.batches(config, listing=listing)[0]
    assert msgspec.json.decode(listing.read_bytes())["id"] == "text-0"


@pytest.mark.parametrize("resampler", ["torch", "pillow"])
def test_images_become_square_with_the_arithmetic_of_the_config(config, resampler):
    siglip = schema.SiglipConfig(image_size=SIZE + 7, patch=23, resampler=resampler)
    run = dataclasses.replace(config, model=dataclasses.replace(config.model, siglip=siglip))
    found = mixture.batches(run)[0].speechless.images
    pictures = [images.decode(_record(i, "text", spoken=False).image) for i in range(30)]
    pictures += [images.decode(_record(i, "visual").image) for i in range(VISUAL)]
    made = {
        other: {images.resize_square(x, SIZE + 7, resampler=other).tobytes() for x in pictures}
        for other in ("torch", "pillow")
    }
    for other, squares in made.items():
        assert all((x.tobytes() in squares) == (other == resampler) for x in found)
