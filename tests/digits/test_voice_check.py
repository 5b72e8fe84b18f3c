"""The same sentence three times, cut where it is said; sentences that no classifier and no decoder hears."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mvjax import types
from mvjax.digits import voice_check
from mvjax.eval import answering
from mvjax.eval import model as eval_model

sys.path.append(str(Path(__file__).parents[1] / "eval"))
import small_speaker

T, START = 40, 9


class Hum:
    """A codec whose code is the loudness of the frame."""

    def encode(self, audio):
        level = np.abs(audio).reshape(len(audio), -1, types.FRAME_SAMPLES).mean(2)
        return (1000 * level).astype(np.int32)[:, None]

    def decode(self, codes):
        return np.repeat(codes[:, 0] / 1000, types.FRAME_SAMPLES, axis=1).astype(np.float32)

    def stream(self, *, batch=1):
        raise NotImplementedError


def conversation(model, words: dict[int, str]) -> answering.SpokenConversation:
    """The model says words in their frames, and something before the question; louder in every frame."""
    ids = np.full(T, model.config.model.text_pad, np.int32)
    for frame, word in {2: "hello", **words}.items():
        ids[frame] = model.tokenizer.encode(word)[0]
    codes = np.arange(T, dtype=np.int32)[None]
    return answering.SpokenConversation(eval_model.Streams(ids, codes, codes), START, START + 4)


@pytest.fixture(scope="module")
def said():
    config = small_speaker.CONFIG
    model = eval_model.LoadedModel(config, {}, Hum(), small_speaker.tokenizer())
    answers = [conversation(model, {13: "it", 15: "is"}), conversation(model, {})]
    assert voice_check.sentences(model, answers[1:]) == []  # an answer without a word is none
    return voice_check.sentences(model, answers)


def test_each_side_says_what_the_model_wrote_in_its_answer(said):
    (sentence,) = said
    assert sentence.text == "it is" and tuple(sentence.said) == voice_check.SIDES
    assert all([w for w, _ in words] == ["it", "is"] for _, words in sentence.said.values())
    samples, words = sentence.said["model"]
    assert [start / types.FRAME_SECONDS for _, start in words] == pytest.approx([3, 5])
    levels = 1000 * samples[:: types.FRAME_SAMPLES]
    np.testing.assert_allclose(levels, range(13 - 3, 15 + 10), rtol=1e-5)


def test_the_synthesizers_has_silence_around_it_and_goes_through_the_codec(said):
    samples, words = said[0].said["synthesizer"]
    through, again = said[0].said["codec"]
    assert again == words and len(through) == len(samples)
    edge = 3 * types.FRAME_SAMPLES
    assert not samples[:edge].any() and words[0][1] >= edge / types.SAMPLE_RATE
    assert not through[:edge].any() and through[edge : 2 * edge].any()


def test_a_quarter_of_all_sentences_is_held_out():
    training, test = voice_check.utterances(60, 20, 1)
    assert (len(training), len(test)) == (60, 20)
    texts = [" ".join(word for word, _ in words) for _, words in (*training, *test)]
    assert [voice_check.held_out(text) for text in texts] == [False] * 60 + [True] * 20
    assert len(set(texts)) == 80
