import json

import msgspec
import numpy as np
import pytest
import released
import released_spoken
import soundfile
from pyarrow import parquet

from mvjax.data.ingest import babillage, items, moshi_finetune, sources
from mvjax.data.records import dataset
from mvjax.data.speech import spoken


def read(reader, source, tmp_path, **options):
    """The dialogues by id, and id -> reason of skipped items."""
    listing = tmp_path / "skipped.jsonl"
    with items.SkippedItems(listing) as skips:
        found = {d.id: d for d in reader.read(source, skips=skips, **options)}
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    return found, {line["id"]: line["reason"] for line in lines}


@pytest.mark.parametrize("folder", [True, False])
def test_moshi_finetune_as_its_users_have_it(tmp_path, folder):
    released_spoken.moshi_finetune(tmp_path)
    source = tmp_path if folder else tmp_path / "mycooldataset.jsonl"
    found, skipped = read(moshi_finetune, source, tmp_path / "..")
    assert list(found) == ["data_stereo/a", "data_stereo/b", "data_stereo/c"] and not skipped
    first = found["data_stereo/a"]
    assert first.words == (
        dataset.Word("Hello", 0.24, 0.61),
        dataset.Word("there.", 0.7, 0.98),
    )
    assert first.turns == (dataset.Turn("assistant", "Hello there."),)
    assert (first.user_words, first.image, first.kinds) == (None, None, ())
    samples = first.samples()
    assert samples.shape == (2, 36_000)
    assert np.abs(samples[0]).max() > 0.25 and np.abs(samples[1]).max() == 0
    third = found["data_stereo/c"]
    assert third.user_words == (dataset.Word("Hi!", 0.0, 0.2),)
    assert [turn.speaker for turn in third.turns] == ["user", "assistant"]


def test_what_is_written_reads_back_and_upstream_can_read_it(tmp_path):
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal((2, 31_000))).astype(np.float32)
    dialogue = spoken.Spoken(
        id="docci/7 LOC",
        audio=audio,
        words=(dataset.Word("There.", 0.8, 1.1),),
        turns=(dataset.Turn("user", "Where is it?"), dataset.Turn("assistant", "There.")),
        user_words=(dataset.Word("Where", 0.1, 0.2), dataset.Word("is", 0.9, 1.0)),
        kinds=("LOC",),
        facts={"seed": 3, "place": "left"},
        image=released.picture(1),
    )
    listing = moshi_finetune.write(tmp_path, [dialogue], name="spoken")
    (found,) = read(moshi_finetune, listing, tmp_path)[0].values()
    np.testing.assert_allclose(found.samples(), audio, atol=2**-15)
    for name in ("id", "words", "turns", "user_words", "kinds", "facts", "image"):
        assert getattr(found, name) == getattr(dialogue, name), name

    line = json.loads(listing.read_text())
    assert line == {"path": "spoken/docci_7_LOC.wav", "duration": 31_000 / 24_000}
    wav = tmp_path / line["path"]
    assert soundfile.info(wav).samplerate == 24_000
    upstream = json.loads(wav.with_suffix(".json").read_text())["alignments"]
    assert upstream == [
        ["Where", [0.1, 0.2], "SPEAKER_USER"],
        ["There.", [0.8, 1.1], "SPEAKER_MAIN"],
        ["is", [0.9, 1.0], "SPEAKER_USER"],
    ]
    with pytest.raises(ValueError, match="ids that differ, 'docci/7 LOC' does not"):
        moshi_finetune.write(tmp_path, [dialogue, dialogue])


def test_any_ids_are_files_of_their_own(tmp_path):
    url = "https://pictures.example/" + "x" * 300
    ids = {"a/b", "a_b", "A_B", url, f"{url}y", "ü" * 200, "..", "...", "short", "a.b"}
    audio = np.zeros((2, 1920), np.float32)
    turns, words = (dataset.Turn("assistant", "Yes."),), (dataset.Word("Yes.", 0.0, 0.05),)
    listing = moshi_finetune.write(
        tmp_path, [spoken.Spoken(name, audio, words, turns) for name in sorted(ids)]
    )
    names = [path.name for path in (tmp_path / "data").iterdir()]
    assert len({name.casefold() for name in names}) == 2 * len(ids)
    assert max(len(name.encode()) for name in names) < 210
    found, skipped = read(moshi_finetune, listing, tmp_path)
    assert set(found) == ids and not skipped


def test_a_folder_that_takes_no_audio_is_named(tmp_path):
    with pytest.raises(OSError, match="none/a.wav: cannot be written: .*disk full"):
        spoken.write_audio(tmp_path / "none" / "a.wav", np.zeros((2, 10), np.float32))


def test_moshi_finetune_leaves_out_what_is_damaged_and_says_so(tmp_path):
    source = tmp_path / "data"
    released_spoken.moshi_finetune(source)
    media = source / "data_stereo"
    with (source / "mycooldataset.jsonl").open("a") as listing:
        for name in "defghi":
            listing.write(json.dumps({"path": f"data_stereo/{name}.wav", "duration": 1.0}) + "\n")
        listing.write("not json\n\n")
    good = json.loads((media / "a.json").read_text())
    soundfile.write(media / "d.wav", np.zeros(24_000), 24_000)  # mono
    soundfile.write(media / "e.wav", np.zeros((24_000 // 3, 2)), 24_000)  # cut
    soundfile.write(media / "f.wav", np.zeros((24_000, 2)), 24_000)
    soundfile.write(media / "g.wav", np.zeros((24_000, 2)), 24_000)  # without words
    soundfile.write(media / "h.wav", np.zeros((24_000, 2)), 24_000)  # not transcribed
    for name in "def":
        released.save_json(media / f"{name}.json", good)
    released.save_json(media / "f.json", good | {"alignments": [["x", [0.1], "SPEAKER_MAIN"]]})
    released.save_json(media / "g.json", {"alignments": []})
    found, skipped = read(moshi_finetune, source, tmp_path)
    assert sorted(found) == [f"data_stereo/{name}" for name in "abc"]
    assert skipped == {
        "mycooldataset.jsonl:4": "damaged item",
        "mycooldataset.jsonl:5": "damaged item",
        "mycooldataset.jsonl:6": "damaged item",
        "data_stereo/g": "empty transcript",
        "mycooldataset.jsonl:8": "missing file",
        "mycooldataset.jsonl:9": "missing file",
        "mycooldataset.jsonl:10": "damaged line",
    }
    found, skipped = read(moshi_finetune, source, tmp_path, untranscribed=True)
    assert found["data_stereo/h"].words is None and found["data_stereo/h"].turns == ()
    assert "mycooldataset.jsonl:8" not in skipped


def test_babillage_puts_question_and_answer_on_their_sides(tmp_path):
    released_spoken.babillage(tmp_path / "babillage", tmp_path / "pictures")
    images = [tmp_path / "pictures"]
    source = tmp_path / "babillage"
    found, skipped = read(babillage, source, tmp_path, split="coco-test", images=images)
    assert skipped == {"babillage-coco-test-770338": "damaged item"}
    (dialogue,) = found.values()
    assert [(t.speaker, t.text) for t in dialogue.turns] == [
        ("user", "What's here?"),
        ("assistant", "I see a man."),
    ]
    assistant, user = dialogue.samples()
    start = 12_000 + 9_600  # the question and the gap
    assert len(user) == len(assistant) == start + 24_000  # an answer of 1 s at 16 kHz
    assert np.abs(assistant[:start]).max() == 0 and np.abs(user[12_000:]).max() == 0
    for side, sounding in ((user, slice(1000, 11_000)), (assistant, slice(start + 500, -500))):
        assert np.abs(side[sounding]).max() == pytest.approx(0.3, abs=0.05)
    assert dialogue.user_words[1].start == 0.25
    assert dialogue.words[0].start == pytest.approx(0.9)
    assert dialogue.words[3].end == pytest.approx(0.9 + 0.975)
    assert dialogue.image == released.picture(1)
    assert dialogue.facts == {"sample_id": 770337, "image_id": 1}


def test_babillage_needs_image_folders(tmp_path):
    with pytest.raises(ValueError, match="has no pictures; name the folders"):
        read(babillage, tmp_path, tmp_path, split="coco-test", images=[])


def test_babillage_of_the_other_datasets(tmp_path):
    released_spoken.babillage(tmp_path / "babillage", tmp_path / "pictures")
    options = {"images": [tmp_path / "pictures"]}
    source = tmp_path / "babillage"
    found, _ = read(babillage, source, tmp_path, split="ocrvqa-validation", **options)
    assert next(iter(found.values())).image == released.picture(3)
    found, skipped = read(babillage, source, tmp_path, split="vqav2-validation", **options)
    (question,) = found.values()
    assert question.words == () and [t.speaker for t in question.turns] == ["user"]
    assert question.image == released.picture(2) and question.facts["image_id"] == 2
    assert np.abs(question.samples()[0]).max() == 0
    assert skipped == {"babillage-vqav2-validation-9007": "missing image"}


HELLO = ("hello", [0.2, 0.6], "SPEAKER_MAIN")


def one_dialogue(root, *words, audio="a.wav"):
    """Four seconds: a.wav (or a.mp3), a.json and data.jsonl, the manifest, which is returned."""
    samples = np.stack([released_spoken.tone(4, 24_000, hertz) for hertz in (220, 330)], 1)
    options = {"bitrate_mode": "CONSTANT", "compression_level": 0.9} if "mp3" in audio else {}
    soundfile.write(root / audio, samples, 24_000, **options)
    released.save_json(root / "a.json", {"alignments": [HELLO, *words]})
    released.save_json(root / "data.jsonl", {"path": audio, "duration": 4.0})
    return root / "data.jsonl"


def test_lists_that_mvjax_writes_are_no_manifests(tmp_path):
    listing = one_dialogue(tmp_path)
    with listing.open("a") as file:
        file.writelines(f'\n{{"path": "gone/{n}.wav", "duration": 4.0}}' for n in range(300))
    others = {"speech.bad_records": "x", "talk.dropped": "x", "talk": '{"id": "d0", "turns": []}'}
    for name, content in others.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
    own = tmp_path / "speech.bad_records.jsonl"  # written beside the input, while it is read
    for _ in range(2):
        with items.SkippedItems(own) as skips:
            found = list(moshi_finetune.read(tmp_path, skips=skips))
        assert [dialogue.id for dialogue in found] == ["a"]
        assert skips.counts == {"missing file": 300, "not a manifest": 1}
        assert len(own.read_text().splitlines()) == 301


def test_late_words_are_left_out_and_counted(tmp_path):
    yes, no = ("yes", [3.8, 4.01], "SPEAKER_USER"), ("no", [4.01, 4.2], "SPEAKER_USER")
    listing = one_dialogue(tmp_path, yes, no)
    skips = items.SkippedItems(tmp_path / "skipped.jsonl")
    (found,) = moshi_finetune.read(listing, skips=skips)
    skips.close()
    assert found.words == (dataset.Word("hello", 0.2, 0.6),)
    assert found.user_words == (dataset.Word("yes", 3.8, 4.0),)
    assert not skips.counts and skips.trimmed == {spoken.LATE: 1}
    assert json.loads((tmp_path / "skipped.jsonl").read_text())["id"] == "a"
    listing = one_dialogue(tmp_path, no, ("never", [5.0, 5.2], "SPEAKER_MAIN"))  # most
    found, skipped = read(moshi_finetune, listing, tmp_path)
    assert not found and skipped == {"data.jsonl:1": "damaged item"}


def test_a_late_word_of_babillage_is_left_out_and_counted(tmp_path):
    released_spoken.babillage(tmp_path / "babillage", tmp_path / "pictures")
    path = tmp_path / "babillage" / "coco" / "test-00000-of-00004.parquet"
    table = parquet.read_table(path)
    rows = table.to_pylist()
    rows[0]["answer_alignment"][3] = [7.0, 7.2]
    released.save_table(path, rows[:1], table.schema)
    skips = items.SkippedItems()
    options = {"split": "coco-test", "images": [tmp_path / "pictures"]}
    (found,) = babillage.read(tmp_path / "babillage", skips=skips, **options)
    assert [word.text for word in found.words] == ["I", "see", "a"]
    assert skips.trimmed == {spoken.LATE: 1} and not skips.counts


def test_a_byte_order_mark_is_no_damage(tmp_path):
    for path in (one_dialogue(tmp_path), tmp_path / "a.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found, skipped = read(moshi_finetune, tmp_path, tmp_path / "..")
    assert list(found) == ["a"] and not skipped


def test_an_mp3_without_a_count_has_its_own_length(tmp_path):
    listing = one_dialogue(tmp_path, ("end", [3.9, 3.95], "SPEAKER_USER"), audio="a.mp3")
    found, skipped = read(moshi_finetune, listing, tmp_path)
    assert not skipped and 4.0 <= found["a"].samples().shape[1] / 24_000 < 4.1


def test_a_manifest_that_cannot_be_opened_does_not_end_the_others(tmp_path):
    one_dialogue(tmp_path)
    (tmp_path / "0.jsonl").symlink_to(tmp_path / "0.jsonl")  # leads to itself
    (tmp_path / "1.jsonl").mkdir()
    assert list(read(moshi_finetune, tmp_path, tmp_path / "..")[0]) == ["a"]
    skips = items.SkippedItems()
    assert not list(sources.json_lines(tmp_path / "1.jsonl", msgspec.json.Decoder(dict), skips))
    assert skips.counts == {"unreadable file": 1}
