"""How samples are put: tokens and frames, what each is about, and lengths that depend on the sample alone."""

import dataclasses

import numpy as np
import pytest
import small_speaker
from small_speaker import FRAME, exchange

from mvjax import types
from mvjax.eval import asking, benchmarks

PROTOCOL = benchmarks.PromptProtocol(lead_in=0.16, tail=1.0)
PAD, EPAD = small_speaker.MODEL.text_pad, small_speaker.MODEL.text_epad
FREE = types.UNGENERATED


@pytest.fixture(scope="module")
def tokenizer():
    return small_speaker.tokenizer()


def sample(**fields) -> benchmarks.Sample:
    speech = np.full(2 * FRAME + 5, 0.5, np.float32)
    return benchmarks.Sample("0", "kind", "where is it", speech=lambda: speech, **fields)


def test_a_written_prompt_is_the_earlier_turns_then_the_question_in_its_template(tokenizer):
    protocol = dataclasses.replace(PROTOCOL, template="please {prompt}")
    asked = asking.written(sample(before=[exchange("off-topic")]), protocol, tokenizer)
    pieces = [tokenizer.id_to_piece(i) for i in asked.tokens]
    text = "".join(pieces).replace("▁", " ")
    assert text == "<s> what digit is this</s> a seven<s> please where is it</s>"
    ((topic, first, last),) = asked.spans
    assert topic == "off-topic" and tokenizer.decode(asked.tokens[first:last]) == "a seven"
    assert asked.size == 16 and not asked.choices


def test_lengths_are_rungs_of_a_ladder():
    rungs = {n: asking.rung(n, 64) for n in (1, 64, 65, 256, 257, 513, 600, 1000, 3000)}
    assert list(rungs.values()) == [64, 64, 128, 256, 320, 640, 640, 1024, 3072]
    assert all(n <= up < n + max(64, n / 4) for n, up in rungs.items())


def test_a_spoken_conversation_is_silence_question_and_time_to_answer():
    asked = asking.spoken(sample(), PROTOCOL)
    assert (asked.start, asked.end, asked.last, asked.size) == (2, 5, 18, 32)
    heard = np.flatnonzero(asked.user)
    assert (heard[0], heard[-1] + 1, len(asked.user)) == (2 * FRAME, 4 * FRAME + 5, 32 * FRAME)
    assert asked.spans == [("image", 2, 18)] and not asked.forced
    assert (asking.forced_text(asked, small_speaker.MODEL, None) == FREE).all()


def test_a_suppressed_greeting_is_padding_in_the_lead_in():
    asked = asking.spoken(sample(), dataclasses.replace(PROTOCOL, greeting="suppressed"))
    row = asking.forced_text(asked, small_speaker.MODEL, None)
    assert row[:3].tolist() == [PAD, PAD, FREE]


def test_earlier_answers_are_given_or_the_models_own(tokenizer):
    own, given = exchange("off-topic"), exchange("image", spoken=True)
    asked = asking.spoken(sample(before=[own, given], topic="off-topic"), PROTOCOL)
    # 2 of silence, 3 of a question, 13 for its answer, 3 of a question, 9 of its answer
    assert asked.spans == [("off-topic", 2, 18), ("image", 18, 30), ("off-topic", 30, 46)]
    assert asked.forced == [(18, 30)] and (asked.start, asked.end) == (30, 33)
    row = asking.forced_text(asked, small_speaker.MODEL, tokenizer)
    assert (row[:18] == FREE).all() and (row[30:] == FREE).all()
    a, seven = tokenizer.encode("a"), tokenizer.encode("seven")
    assert row[18:23].tolist() == [PAD, PAD, PAD, EPAD, *a]
    assert row[24 : 24 + len(seven)].tolist() == seven
    codes = np.arange(2 * asked.size).reshape(2, -1).astype(np.int32)
    speech = asking.forced_audio(asked, codes)
    np.testing.assert_array_equal(speech[:, 18:30], codes[:, 18:30])
    assert (speech[:, :18] == FREE).all() and (speech[:, 30:] == FREE).all()
    said = np.flatnonzero(asked.assistant)
    assert (said[0], said[-1] + 1) == (21 * FRAME, 30 * FRAME)


def test_what_has_no_speech_is_not_asked_aloud():
    silent = dataclasses.replace(sample(), speech=None)
    with pytest.raises(ValueError, match="sample 0: expected spoken questions for mode audio"):
        asking.spoken(silent, PROTOCOL)
