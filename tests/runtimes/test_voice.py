"""A voice, and an export folder opened with its codec and tokenizer: what is heard, said, and refused."""

import dataclasses
import json

import exported
import mimi_file
import mimi_twin
import numpy as np
import pytest

from mvjax import files, types
from mvjax.config import talking
from mvjax.digits import frozen_models
from mvjax.runtimes import interface, loading, voice
from mvjax.weights import codecs, file_names, stated

TOKENIZER = files.resolve(frozen_models.FROZEN.tokenizer)
CODEC = dataclasses.replace(  # of 1920 samples a frame
    mimi_twin.CONFIG, ratios=(8, 6, 5, 4), filters=2, codes=exported.TOY.audio_vocab, codebooks=3
)
SIZES = interface.Sizes(
    (0, 0, 1, 1, 0, 1), codebooks_out=3, text_vocab=9, audio_vocab=7, image_size=4
)


class Pieces:
    """A tokenizer: "▁ab", and a character of two bytes."""

    names = ("<unk>", "<s>", "</s>", "<pad>", "▁ab", "c", "<0xC3>", "<0xA9>")
    id_to_piece = names.__getitem__

    def is_control(self, token):
        return token in (1, 2, 3)

    def is_byte(self, token):
        return token >= 6


class Echo:
    """A codec stream whose codes are the samples' number, and whose audio is the codes' sum."""

    def encode(self, audio):
        return np.full((1, 3, 1), audio.shape[1], np.int32)

    def decode(self, codes):
        assert codes.dtype == np.int32 and codes.shape == (1, 3, 1)
        return np.full((1, types.FRAME_SAMPLES), codes.sum(), np.float32)

    def reset(self):
        raise NotImplementedError


def frame(text, codes=None):
    return interface.Frame(text, codes, np.zeros(3, int), 0.0, None)


def test_a_voice_hears_its_codebooks_and_says_what_a_frame_holds():
    one = voice.Voice(Echo(), Pieces(), SIZES)
    np.testing.assert_array_equal(one.hear(np.zeros(types.FRAME_SAMPLES, np.float32)), [1920, 1920])
    with pytest.raises(ValueError, match=r"expected a frame of 1920 samples, got \[7\]"):
        one.hear(np.zeros(7, np.float32))
    first = one.say(frame(3))
    assert first.text == "" and first.pcm.shape == (1920,) and not first.pcm.any()
    said = [one.say(frame(text, np.array([2, 3, 1]))) for text in (4, 5, 0, 1, 6, 7)]
    assert [x.text for x in said] == [" ab", "c", "", "", "", "é"]
    assert all((x.pcm == 6).all() for x in said)


@pytest.fixture
def folder(tmp_path):
    """The toy's export with a codec of its own sizes and a tokenizer of enough pieces."""
    pytest.importorskip("torch")
    _, out = exported.write(exported.TOY, "torch", tmp_path)
    mimi_file.write_random(out / file_names.CODEC, CODEC)
    codecs.write_sizes(out, CODEC)
    (out / file_names.TOKENIZER).write_bytes(TOKENIZER.read_bytes())
    return out


def test_a_folder_speaks(folder):
    (folder / file_names.CERTIFICATE).write_text(json.dumps({"verdict": "pass"}))
    speaker = loading.open_speaker(folder)
    assert (speaker.name, speaker.certificate) == ("torch", {"verdict": "pass"})
    assert codecs.read_sizes(folder) == speaker.codec.config == CODEC
    session, one = speaker.model.session(), speaker.voice()
    audio = np.random.default_rng(0).standard_normal((2, types.FRAME_SAMPLES)).astype(np.float32)
    said = [one.say(session.step(one.hear(pcm))) for pcm in audio]
    assert not said[0].pcm.any() and np.abs(said[1].pcm).max() > 0


def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / file_names.CODEC).unlink(), "expected a Mimi file .*found none"),
        (
            lambda f: (f / file_names.TOKENIZER).unlink(),
            "expected a SentencePiece model, found none",
        ),
        (_write(file_names.TOKENIZER, "spm"), "no SentencePiece model"),
        (lambda f: (f / "codec.json").unlink(), "3 codebooks of 13 codes, got 3 of 2048"),
        (_write("codec.json", "{"), "codec.json: not JSON"),
        (_write("codec.json", '{"codes": 13}'), "codec.json: expected the keys filters, ratios"),
        (_write(file_names.CERTIFICATE, "{"), "certificate.json: damaged"),
        (_write(file_names.CERTIFICATE, "[]"), "certificate.json: damaged"),
        (_write(file_names.CERTIFICATE, '{"verdict": 3}'), "certificate.json: damaged"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named_with_the_remedy(damage, message, folder):
    damage(folder)
    with pytest.raises(ValueError, match=f"(?s){message}.*export again"):
        loading.open_speaker(folder)


def test_how_to_talk_is_what_the_folder_says_and_never_negative(tmp_path):
    assert loading.read_talk(tmp_path) == talking.TalkConfig()
    said = talking.TalkConfig(lead_in=0.32, text_temperature=0.0, voice="ja")
    stated.write(tmp_path / "talk.json", said)
    assert loading.read_talk(tmp_path) == said
    for change, message in (
        ({"tail": -1}, "expected 0 or more"),
        ({"voice": 3}, "such as 'en-us'"),
    ):
        text = json.dumps(dataclasses.asdict(said) | change)
        (tmp_path / "talk.json").write_text(text)
        with pytest.raises(ValueError, match=f"talk.json: .*{message}.*export again"):
            loading.read_talk(tmp_path)


def test_a_value_of_another_kind_in_the_codecs_sizes_is_refused(tmp_path):
    codecs.write_sizes(tmp_path, CODEC)
    sizes = json.loads((tmp_path / "codec.json").read_text())
    for change in ({"filters": 0}, {"ratios": 4}, {"codes": "13"}, {"context_has_self": 1}):
        (tmp_path / "codec.json").write_text(json.dumps(sizes | change))
        with pytest.raises(ValueError, match="expected positive numbers|expected such as"):
            codecs.read_sizes(tmp_path)
