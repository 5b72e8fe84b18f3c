import dataclasses
import importlib
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import one_dataset
import pytest

from mvjax import cli, files, types
from mvjax.codec import flax_codec
from mvjax.data.ingest import items, moshi_finetune
from mvjax.data.records import dataset
from mvjax.data.speech import augment, code_store, encode, encoder, spoken
from mvjax.digits import frozen_models
from mvjax.weights import mimi

CODEC = frozen_models.FROZEN.codec
SECONDS = (1.3, 0.5, 2.03, 1.3, 0.07)
Q = 8


@pytest.fixture(scope="module")
def codec():
    return flax_codec.FlaxCodec(
        mimi.load_mimi(files.resolve(CODEC), frozen_models.CODEC), frozen_models.CODEC
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder in moshi-finetune's format: five dialogues of noise, of different lengths."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)

    def dialogues():
        for n, seconds in enumerate(SECONDS):
            samples = round(seconds * types.SAMPLE_RATE)
            audio = (0.2 * rng.standard_normal((2, samples))).astype(np.float32)
            words = (dataset.Word("hi", 0.0, seconds / 2),)
            turns = (dataset.Turn("assistant", "hi"),)
            yield spoken.Spoken(id=f"talk-{n}", audio=audio, words=words, turns=turns)

    moshi_finetune.write(folder, dialogues())
    return folder


def settings(root, **fields) -> encoder.EncodeSettings:
    chosen = {
        "codec": CODEC,
        "config": frozen_models.CODEC,
        "codebooks": Q,
        "store": root / encode.STORE,
    }
    return encoder.EncodeSettings(**{**chosen, "batch_seconds": 6.0, **fields})


def run(root, source, *, skips=None, name="chat", workers=0, copies=1, **fields):
    skips = skips or items.SkippedItems()
    chosen = settings(root, **fields)
    found = moshi_finetune.read(source, skips=skips)
    return encode.write(
        found, root / name, settings=chosen, made_with=dataset.identity(frozen_models.FROZEN),
        skips=skips, workers=workers, copies=copies,
    )  # fmt: skip


@pytest.mark.slow
def test_codes_are_those_of_each_side_alone(tmp_path, source, codec):
    tally = run(tmp_path, source)
    assert tally.records == len(SECONDS) and tally.fresh_seconds == pytest.approx(sum(SECONDS))
    reader = dataset.RecordReader(
        tmp_path / "chat", expected=dataset.identity(frozen_models.FROZEN)
    )
    dialogues = moshi_finetune.read(source, skips=items.SkippedItems())
    for found, dialogue in zip(reader, dialogues, strict=True):
        audio = dialogue.samples()
        assert found.id == dialogue.id and found.words == dialogue.words
        assert found.seconds == audio.shape[1] / types.SAMPLE_RATE
        wanted = codec.encode(audio).reshape(2 * Q, -1)
        got = found.array()
        assert got.shape == wanted.shape
        # Filling up changes no sum but its order: a tie between two codes may fall otherwise.
        assert np.mean(got == wanted) > 0.99


def test_what_was_encoded_is_not_encoded_again(tmp_path, source, monkeypatch):
    run(tmp_path, source)
    first = dataset.RecordReader(tmp_path / "chat", expected=None)
    wanted = [record.codes for record in first]
    monkeypatch.setattr(flax_codec.FlaxCodec, "encode", None)  # would fail if it were called
    tally = run(tmp_path, source, name="again")
    assert tally.fresh_seconds == 0 and tally.seconds == pytest.approx(sum(SECONDS))
    assert [r.codes for r in dataset.RecordReader(tmp_path / "again", expected=None)] == wanted


def test_a_run_that_was_killed_goes_on(tmp_path, source, monkeypatch):
    encoded = flax_codec.FlaxCodec.encode
    calls = []

    def dies(self, audio):
        calls.append(len(audio))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encoded(self, audio)

    monkeypatch.setattr(flax_codec.FlaxCodec, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, source)
    assert not (tmp_path / "chat.json").exists()
    monkeypatch.setattr(flax_codec.FlaxCodec, "encode", encoded)
    tally = run(tmp_path, source)
    assert 0 < tally.fresh_seconds < tally.seconds


def test_a_damaged_entry_is_made_again(tmp_path, source):
    run(tmp_path, source)
    entries = sorted(path for path in (tmp_path / encode.STORE).rglob("*") if path.is_file())
    wanted = entries[0].read_bytes()
    entries[0].write_bytes(wanted[:-9] + b"x" * 9)
    entries[1].write_bytes(b"")
    tally = run(tmp_path, source)
    assert 0 < tally.fresh_seconds < tally.seconds
    assert entries[0].read_bytes() == wanted


def test_other_settings_are_other_codes(tmp_path, source):
    path = next(moshi_finetune.read(source, skips=items.SkippedItems())).audio
    keys = {
        code_store.key(path, "a", "b"), code_store.key(path, "ab", ""), code_store.key(path, "a"),
        code_store.key(np.zeros((2, 4), np.float32), "a", "b"),
    }  # fmt: skip
    assert len(keys) == 4
    run(tmp_path, source)
    assert run(tmp_path, source, codebooks=3).fresh_seconds == pytest.approx(sum(SECONDS))


def test_what_cannot_be_read_is_listed(tmp_path, source):
    broken = tmp_path / "speech"
    skips = items.SkippedItems(tmp_path / "bad.jsonl")
    dialogues = list(moshi_finetune.read(source, skips=skips))
    broken.mkdir()
    for n, dialogue in enumerate(dialogues[:2]):
        data = dialogue.audio.read_bytes()
        path = broken / dialogue.audio.name
        path.write_bytes(data if n else data[:900])
        dialogues[n] = dataclasses.replace(dialogue, audio=path)
    dialogues[2] = dataclasses.replace(dialogues[2], audio=broken / "none.wav")
    tally = encode.write(
        dialogues, tmp_path / "chat", settings=settings(tmp_path, max_seconds=1.0),
        made_with=dataset.identity(frozen_models.FROZEN), skips=skips,
    )  # fmt: skip
    skips.close()
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert (tally.records, tally.skipped) == (2, 3)
    assert [line["id"] for line in lines] == ["talk-0", "talk-2", "talk-3"]
    assert "none.wav" in lines[1]["detail"] and "1" in lines[2]["detail"]


@pytest.mark.slow
def test_processes_write_the_same_records(tmp_path, source):
    run(tmp_path / "one", source)
    run(tmp_path / "two", source, workers=2)
    one, two = (dataset.RecordReader(tmp_path / n / "chat", expected=None) for n in ("one", "two"))
    assert [r.codes for r in one] == [r.codes for r in two]


def test_beam_fills_the_store(tmp_path, source):
    pytest.importorskip("apache_beam")
    from mvjax.data.speech import beam

    chosen = settings(tmp_path)
    tasks = encode.tasks(moshi_finetune.read(source, skips=items.SkippedItems()), chosen)
    assert beam.fill(tasks, chosen, options=["--runner=DirectRunner"]) == len(SECONDS)
    assert not list(chosen.store.glob("beam-*"))
    tally = run(tmp_path, source)
    assert (tally.records, tally.fresh_seconds) == (len(SECONDS), 0)


@pytest.mark.parametrize("count", [1, 1_000_000])
def test_the_graph_of_a_million_dialogues_is_small(tmp_path, monkeypatch, count):
    """Dataflow takes a job of at most 10 MB; the dialogues are in a manifest that workers read."""
    pytest.importorskip("apache_beam")
    from mvjax.data.speech import beam

    monkeypatch.setattr(encode, "only_audio", list)  # a million copies take a minute
    word = dataset.Word("seven", 0.0, 0.5)
    talk = spoken.Spoken("talk", Path("/far/talk.wav"), (word,) * 150, ())
    task = encoder.EncodeTask(talk)
    tasks = itertools.repeat(task, count)
    manifest = beam.Manifest(tmp_path).write(tasks)
    assert manifest.chunks == -(-count // encode.CHUNK)
    last = beam.Manifest(tmp_path).read(manifest.chunks - 1)
    assert last == [task] * (count - (manifest.chunks - 1) * encode.CHUNK)
    graph = beam.pipeline(manifest, settings(tmp_path), ["--runner=DirectRunner"])
    assert len(graph.to_runner_api().SerializeToString()) < 100_000


def test_without_beam_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "mvjax.data.speech.beam", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"mvjax\[beam\]"):
        importlib.import_module("mvjax.data.speech.beam")


def test_copies_differ_and_are_the_same_again(tmp_path, source):
    chosen = augment.Augment(seed=3, p_gain=1.0)
    run(tmp_path, source, augment=chosen, copies=2)
    reader = dataset.RecordReader(tmp_path / "chat", expected=None)
    ids = [record.id for record in reader]
    assert ids[:2] == ["talk-0", "talk-0#1"] and len(ids) == 2 * len(SECONDS)
    one, two = reader[0].array(), reader[1].array()
    np.testing.assert_array_equal(one[:Q], two[:Q])  # the assistant as recorded
    assert np.any(one[Q:] != two[Q:])
    run(tmp_path / "other", source, augment=chosen, copies=2)
    again = dataset.RecordReader(tmp_path / "other" / "chat", expected=None)
    assert [r.codes for r in again] == [r.codes for r in reader]
    with pytest.raises(ValueError, match="copies: expected 1"):
        run(tmp_path, source, copies=2)


def test_nothing_that_can_be_read_replaces_no_dataset(tmp_path, source, capsys):
    experiment = Path(__file__).parents[2] / "experiments" / "digits.py"
    words = ["data", "encode", str(experiment), "--workers", "0", "--out", str(tmp_path), "--name"]
    one_dataset.write(tmp_path, [one_dataset.record()], name="chat")
    before = {path: path.read_bytes() for path in tmp_path.glob("chat*")}
    damaged = tmp_path / "damaged"
    shutil.copytree(source, damaged)
    for path in (damaged / "data").glob("*.json"):
        path.write_text('{"alignments": "?"}')
    assert cli.main([*words, "chat", str(damaged)]) == 1
    told = capsys.readouterr().err
    assert "5 damaged item; listed in" in told and "Expected `array`, got `str`" in told
    assert {path: path.read_bytes() for path in before} == before
    assert dataset.verify(tmp_path / "chat") == []
    assert cli.main([*words, "c.1", str(source)]) == 2
    assert "expected a dataset as ROOT/NAME" in capsys.readouterr().err
    assert not (tmp_path / "c.1.bad_records.jsonl").exists()
