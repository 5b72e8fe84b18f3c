import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_records

from mvjax import types
from mvjax.config import schema
from mvjax.data import examples, images, mixture, streams, windows
from mvjax.data.records import bad_records, dataset


def test_shapes_and_what_absent_means(config):
    speech, speechless = mixture.batches(config)[3]
    assert speech.codes.shape == (4, 5, toy_records.FRAMES) and speechless.codes.shape == (
        12,
        5,
        24,
    )
    assert speech.codes.dtype == np.int32 and speech.images.shape == (
        4,
        toy_records.SIZE,
        toy_records.SIZE,
        3,
    )
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
        toy_records.assert_equal(first[step], again[step])
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
    toy_records.assert_equal(whole, joined)


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
    plain, ahead = (
        mixture.batches(config),
        mixture.batches(toy_records.with_data(config, workers=2)),
    )
    for step in (0, 1, 2, 9, 3):
        toy_records.assert_equal(plain[step], ahead[step])


def test_every_record_once_an_epoch_and_sources_by_weight(config):
    config = toy_records.with_data(config, p_concat=0.0, speechless=(schema.Source("text"),))
    seen = []
    mixture.ensure_records(config.data)
    build = examples.ExampleBuilder(config, bad_records.BadRecords(0))
    source = build.source("visual", seed=3, spoken=True)
    for epoch in range(2):
        seen.append(
            [source[epoch * toy_records.VISUAL + i].record.id for i in range(toy_records.VISUAL)]
        )
    assert (
        sorted(seen[0])
        == sorted(seen[1])
        == sorted(f"visual-{i}" for i in range(toy_records.VISUAL))
    )
    assert seen[0] != seen[1]


def test_context_switch_keeps_the_answer_and_the_image(config):
    batches = mixture.batches(toy_records.with_data(config, p_concat=1.0))
    originals = {}
    for i in range(toy_records.VISUAL):
        record = toy_records.record(i, "visual")
        originals[images.decode(record.image).tobytes()] = record
    before, after, cut = [], [], 0
    for step in range(30):
        part = batches[step].speech
        for codes, pixels in zip(part.codes, part.images):
            record = originals[pixels.tobytes()]
            inside = np.flatnonzero((codes[1] >= 0) & (codes[1] < toy_records.CODES // 2))
            assert (np.diff(inside) == 1).all()
            full, answered = record.array(), windows.spoken_exchanges(record)[-1]
            starts = [
                n
                for n in range(full.shape[1] - len(inside) + 1)
                if np.array_equal(codes[1:, inside], full[:, n : n + len(inside)])
            ]
            assert starts
            cut += 0 not in starts or len(inside) < answered
            before.append(inside[0])
            after.append((codes[1] >= 0).sum() - inside[-1] - 1)
            assert before[-1] + after[-1] > 0
    assert len(set(before)) > 5 and len(set(after)) > 5
    assert cut < 20  # of 120: where no talk fits beside the whole answer
    plain = mixture.batches(toy_records.with_data(config, p_concat=0.0))
    assert all((plain[s].speech.codes[:, 1] < toy_records.CODES // 2).all() for s in range(10))


def test_unrelated_talk_need_not_see_the_image(config):
    fields = {"p_concat": 1.0, "small_talk_image": "absent"}
    part = mixture.batches(toy_records.with_data(config, **fields))[4].speech
    whole = mixture.batches(toy_records.with_data(config, p_concat=1.0))[4].speech
    np.testing.assert_array_equal(part.codes, whole.codes)
    assert part.has_image.shape == part.loss_mask.shape and whole.has_image.shape == (4,)
    visual = (part.codes[:, 1] >= 0) & (part.codes[:, 1] < toy_records.CODES // 2)
    np.testing.assert_array_equal(part.has_image, visual)
    text = mixture.batches(toy_records.with_data(config, **fields))[4].speechless
    assert text.has_image.any(axis=1).all()


def test_half_the_rows_switch(config):
    batches = mixture.batches(toy_records.with_data(config, p_concat=0.5))
    switched = [
        (row >= toy_records.CODES // 2).any()
        for s in range(60)
        for row in batches[s].speech.codes[:, 1]
    ]
    assert 0.4 < np.mean(switched) < 0.6


def test_long_dialogues_are_cropped_at_random(config):
    config = toy_records.with_data(config, speech_frames=10, p_concat=1.0)
    batches = mixture.batches(config)
    parts = [batches[s].speech for s in range(5)]
    assert all(part.loss_mask.all() for part in parts)


def test_no_rows_of_one_part(config):
    batch = mixture.batches(toy_records.with_data(config, speechless_rows=0, speechless=()))[2]
    assert batch.speechless.codes.shape == (0, 5, 24) and len(batch.speech.codes) == 4


def test_clear_errors(config, tmp_path):
    with pytest.raises(ValueError, match="speech_rows 4 is not divisible by 3"):
        mixture.batches(config, process_count=3)
    with pytest.raises(ValueError, match="p_concat > 0 needs small_talk"):
        mixture.batches(toy_records.with_data(config, small_talk=()))
    with pytest.raises(ValueError, match="weight above 0"):
        mixture.batches(toy_records.with_data(config, speech=(schema.Source("visual", 0.0),)))
    with pytest.raises(FileNotFoundError, match=r"not there.*visual"):
        mixture.batches(toy_records.with_data(config, prepare=None, root=str(tmp_path / "empty")))
    batches = mixture.batches(config)
    with pytest.raises(IndexError, match="step >= 0"):
        batches[-1]
    (tmp_path / "codec").write_text("another codec")
    with pytest.raises(ValueError, match="made with codec"):
        mixture.batches(config)


def test_ids_name_the_records_and_what_of_them_is_in_the_row(config):
    found = mixture.batches(toy_records.with_data(config, p_concat=1.0))
    readers = {
        name: dataset.RecordReader(examples.record_path(config.data, name), expected=None)
        for name in ("visual", "talk", "text")
    }
    for step in (0, 5):
        ids, part = found.ids(step), found[step].speech
        for name, codes in zip(ids["speech"], part.codes, strict=True):
            pieces = [
                re.fullmatch(r"(\w+)/(.+)\[(\d+):(\d+)\]", p).groups() for p in name.split("+")
            ]
            audio = [
                readers[source][readers[source].find(id)].array()[:, int(a) : int(b)]
                for source, id, a, b in pieces
            ]
            joined = np.concatenate(audio, axis=1)
            np.testing.assert_array_equal(codes[1:, : joined.shape[1]], joined)
            assert (codes[1:, joined.shape[1] :] == types.ZERO_TOKEN).all()
        assert all(re.fullmatch(r"(text|visual)/\w+-\d+", name) for name in ids["speechless"])
    shares = [mixture.batches(config, process_index=p, process_count=2).ids(5) for p in range(2)]
    whole = mixture.batches(config).ids(5)
    assert whole["speech"] == shares[0]["speech"] + shares[1]["speech"]


def test_images_become_square(config):
    size = toy_records.SIZE + 7
    siglip = schema.SiglipConfig(image_size=size, patch=23)
    run = dataclasses.replace(config, model=dataclasses.replace(config.model, siglip=siglip))
    shown = mixture.batches(run)[0].speechless.images
    items = [toy_records.record(i, "text", spoken=False) for i in range(30)]
    items += [toy_records.record(i, "visual") for i in range(toy_records.VISUAL)]
    squares = {images.resize_square(images.decode(x.image), size).tobytes() for x in items}
    assert shown.shape[1:] == (size, size, 3)
    assert {x.tobytes() for x in shown} <= squares


def test_speech_every_so_many_steps(config):
    """The rows that come are those of a run that has them in every step; absent ones teach nothing."""
    every, third = (
        mixture.batches(toy_records.with_data(config, speech_every=n, speech_rows=4))
        for n in (1, 3)
    )
    for step in range(5):
        whole, given = every[step], third[step]
        toy_records.assert_equal(
            types.Batch(whole.speech, whole.speechless),
            types.Batch(given.speech if step % 3 == 0 else whole.speech, given.speechless),
        )
        if step % 3:
            assert (given.speech.codes == types.ZERO_TOKEN).all()
            assert given.speech.codes.shape == whole.speech.codes.shape
            assert not given.speech.loss_mask.any() and not given.speech.has_image.any()
            assert third.ids(step)["speech"] == []
    shares = [
        mixture.batches(
            toy_records.with_data(config, speech_every=3), process_index=p, process_count=2
        )[1].speech
        for p in range(2)
    ]
    assert [len(share.codes) for share in shares] == [2, 2]
    with pytest.raises(ValueError, match="speech_every: expected at least 1, got 0"):
        toy_records.with_data(config, speech_every=0)


def test_one_process_makes_the_records_and_the_others_wait(tmp_path, config):
    made, root = (
        toy_records.make_config(tmp_path / "made", tmp_path / "codec"),
        Path(config.data.root),
    )
    made.data.prepare(Path(made.data.root))
    root.mkdir()
    maker = f"""
import shutil, time
from pathlib import Path
from mvjax import locks
with locks.held(Path({str(root)!r}) / "lock"):
    print("held", flush=True)
    time.sleep(0.3)
    shutil.copytree({made.data.root!r}, {str(root)!r}, dirs_exist_ok=True)
"""
    other = subprocess.Popen([sys.executable, "-c", maker], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    before = {path.name for path in root.iterdir()}
    mixture.ensure_records(dataclasses.replace(config.data, prepare=_never))
    assert before == {"lock"} and other.wait() == 0
    other.stdout.close()
    assert not (root / "lock").exists() and not mixture.missing_records(config.data)


def _never(root):
    raise AssertionError("another process makes the records")
