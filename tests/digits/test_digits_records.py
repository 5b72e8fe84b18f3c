import dataclasses

import numpy as np
import pytest

from mvjax import types
from mvjax.config import schema
from mvjax.data import images, mixture
from mvjax.data.records import dataset
from mvjax.dialogues import speech
from mvjax.digits import frozen_models, talk, voices, world
from mvjax.digits import records as records_lib

WORD = 0.15  # seconds


def _speak(text, voice):
    """Every word is a constant 0.5 for 0.15 s."""
    words = text.split()
    spans = tuple(dataset.Word(w, i * WORD, (i + 1) * WORD) for i, w in enumerate(words))
    samples = np.full(round(len(words) * WORD * types.SAMPLE_RATE), 0.5, np.float32)
    return speech.SynthesizedSpeech(samples, spans, ())


def _encode(audio):
    """Eight codebooks that tell how loud the frame is, 0..200."""
    loud = np.abs(audio.reshape(len(audio), -1, types.FRAME_SAMPLES)).mean(-1)
    return np.repeat(np.rint(loud * 400).astype(np.int32)[:, None], 8, axis=1)


@pytest.fixture
def frozen(tmp_path, monkeypatch):
    codec = tmp_path / "codec"
    codec.write_text("a codec")
    monkeypatch.setattr(
        frozen_models, "FROZEN", dataclasses.replace(frozen_models.FROZEN, codec=str(codec))
    )
    return frozen_models.FROZEN


def _prepare(root, **changes):
    options = {"dialogues": 6, "speak": _speak, "encode": _encode, "progress": lambda *_: None}
    records_lib.prepare(root, **(options | changes))
    return {
        name: dataset.RecordReader(root / name, expected=None)
        for name in ("visual", "text", "small_talk")
    }


def test_conversation_takes_turns_on_one_clock():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        dialogue = talk.small_talk(rng, turns=2)
        made = records_lib.converse(dialogue, voices.TRAIN_USERS[0], rng, speak=_speak)
        assert made.assistant.shape == made.user.shape
        assert len(made.user) == made.frames * types.FRAME_SAMPLES
        assert not ((made.assistant != 0) & (made.user != 0)).any()
        said = [w for t in dialogue.turns if t.speaker == "assistant" for w in t.text.split()]
        assert [w.text for w in made.words] == said
        for word in made.words:
            inside = slice(*(round(s * types.SAMPLE_RATE) for s in (word.start, word.end)))
            np.testing.assert_array_equal(made.assistant[inside], np.float32(0.5))
        talking = (made.assistant != 0) | (made.user != 0)
        edges = np.flatnonzero(np.diff(talking.astype(int))) / types.SAMPLE_RATE
        gaps = edges[2::2] - edges[1:-1:2]
        assert len(gaps) == 3 and (gaps > 0.159).all() and (gaps < 0.601).all()
        assert (gaps[::2] < 0.321).all(), "the assistant answers at once"
        assert 0.25 <= made.user.max() <= 0.5


def test_real_speech_names_every_word_of_the_assistant():
    rng = np.random.default_rng(0)
    facts = world.Facts(7, "red", "middle")
    dialogue = talk.visual_dialogue(facts, rng, kinds=["place", "misleading"])
    made = records_lib.converse(dialogue, voices.TRAIN_USERS[1], rng, speak=speech.speak)
    said = [w for t in dialogue.turns if t.speaker == "assistant" for w in t.text.split()]
    assert [w.text for w in made.words] == said
    assert all(w.end > w.start for w in made.words)
    assert np.abs(made.assistant).max() > 0.05 and np.abs(made.user).max() > 0.02


def test_one_call_encodes_all_as_each_alone():
    rng = np.random.default_rng(0)
    made = [
        records_lib.converse(
            talk.small_talk(rng, turns=1 + i), voices.TRAIN_USERS[i], rng, speak=_speak
        )
        for i in range(3)
    ]
    codes = records_lib.encode_all(made, _encode, rows=4)
    for conversation, code in zip(made, codes, strict=True):
        np.testing.assert_array_equal(code[:8], _encode(conversation.assistant[None])[0])
        np.testing.assert_array_equal(code[8:], _encode(conversation.user[None])[0])


def test_prepared_records_are_true_to_their_images(tmp_path, frozen):
    files = _prepare(tmp_path / "records", dialogues=40, seed=3)
    assert {name: len(file) for name, file in files.items()} == {
        "visual": 40,
        "text": 160,
        "small_talk": 6,
    }
    scenes = {scene.id: scene for scene in world.scenes("train", 200, 3)}
    for name in ("visual", "text"):
        for record in files[name]:
            scene = scenes.pop(record.id)
            np.testing.assert_array_equal(images.decode(record.image), scene.image)
            assert record.facts == dataclasses.asdict(scene.facts)
            answers = [t.text for t in record.turns if t.speaker == "assistant"]
            plain = [
                (kind, text)
                for kind, text in zip(record.kinds, answers[-len(record.kinds) :], strict=True)
                if kind in ("digit", "colour", "place", "describe")
            ]
            assert all(talk.score(kind, "", scene.facts, text) for kind, text in plain)
    assert not scenes
    for record in files["visual"]:
        assert record.array().shape == (16, round(record.seconds * 12.5))
    assert all(not record.codes and record.words is None for record in files["text"])
    assert all(record.image is None and record.codes for record in files["small_talk"])
    kinds = {kind for record in files["visual"] for kind in record.kinds}
    assert kinds == set(talk.KINDS)


def test_same_seed_same_files(tmp_path, frozen):
    one, two = (_prepare(tmp_path / name, seed=5) for name in "ab")
    other = _prepare(tmp_path / "c", seed=6)
    for name in one:
        assert one[name].index == two[name].index
        assert one[name].index.records != other[name].index.records


def test_progress_counts_up(tmp_path, frozen):
    told = []
    _prepare(tmp_path, dialogues=40, progress=lambda *state: told.append(state))
    assert told == [("visual", 32, 40), ("visual", 40, 40), ("small_talk", 6, 6)]


def test_the_mixture_reads_them(tmp_path, frozen):
    config = schema.Config(
        frozen=frozen,
        model=frozen_models.MODEL,
        data=schema.DataConfig(
            root=str(tmp_path / "records"),
            prepare=lambda root: _prepare(root) and None,
            speech=(schema.Source("visual"),),
            speechless=(schema.Source("text"), schema.Source("visual")),
            small_talk=(schema.Source("small_talk"),),
            speech_rows=2,
            speechless_rows=6,
            speech_frames=150,
            speechless_tokens=64,
        ),
    )
    speech_part, speechless = mixture.batches(config)[0]
    assert speech_part.codes.shape == (2, 17, 150) and speechless.codes.shape == (6, 17, 64)
    loud = (speech_part.codes[:, 1] > 0) & (speech_part.codes[:, 9] > 0)
    assert (
        loud.mean() < 0.05
    )  # only where one frame holds the end of one and the start of the other
    text = speech_part.codes[:, 0]
    words = text[(text > 3) & (text < frozen_models.MODEL.text_vocab)]
    assert len(words) > 10
    assert (speech_part.codes[:, 1][text > 3] > 0).all()
