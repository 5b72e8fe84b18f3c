"""Timing of two channels with known answers, and Silero's spans of synthetic speech and silence."""

import numpy as np
import pytest

from mvjax import types
from mvjax.dialogues import speech
from mvjax.eval.health import activity, timing


def _channels(kind="question", user=(), assistant=(), words=(), seconds=10.0):
    sides = (tuple((float(a), float(b)) for a, b in side) for side in (user, assistant))
    return timing.Channels(kind, seconds, *sides, words)


def test_time_to_respond_is_counted_from_the_turns_last_word():
    c = _channels(user=[(1, 2), (2.3, 3), (6, 7)], assistant=[(3.4, 4), (6.8, 8)])
    assert timing.responses(c) == pytest.approx(
        [0.4, -0.2]
    )  # 0.3 s is a gap, and early is negative
    # an answer that ends before the user does is none; nor is one after the next turn began
    assert timing.responses(_channels(user=[(1, 3)], assistant=[(1.5, 2.5)])) == [None]
    late = timing.responses(_channels(user=[(1, 2), (4, 5)], assistant=[(5.5, 6)]))
    assert late == [None, pytest.approx(0.5)]


def test_a_pause_is_taken_over_by_what_lasts():
    said = {"user": [(1, 2), (3.2, 4)]}
    taken = _channels("pause", assistant=[(2.5, 3.6)], **said)
    assert timing.takeovers(taken) == [True] and timing.responses(taken) == [None]
    okay = {"assistant": [(2.5, 3.1)], **said}
    assert timing.takeovers(_channels("pause", **okay)) == [False]  # a backchannel
    assert timing.takeovers(_channels("pause", words=(2.5, 2.6, 2.7, 2.8), **okay)) == [True]
    after = _channels("pause", assistant=[(4.3, 6)], **said)
    assert timing.takeovers(after) == [False] and timing.responses(after) == pytest.approx([0.3])
    # The same channels as two questions have no pause; nor has a user who is silent for 3.5 s.
    assert timing.takeovers(_channels("question", **okay)) == []
    assert timing.takeovers(_channels("pause", user=[(1, 2), (5.5, 6)])) == []


def test_stop_latency_has_its_control():
    c = _channels("interruption", user=[(1, 2), (3.5, 4.5)], assistant=[(2.4, 3.9), (5, 6)])
    assert timing.interruptions(c) == [(3.5, 3.9)]
    assert timing.interruptions(_channels(user=[(2.5, 3)], assistant=[(2.4, 3.9)])) == []  # at once
    assert timing.reply_end(_channels(assistant=[(2.4, 5.5)]), 3.5) == 5.5
    table = timing.summary([c], [[5.5]])
    assert (table["stop_seconds"], table["undisturbed_seconds"]) == (0.4, 2.0)
    assert table["gave_way"] == [1, 1] and timing.summary([c], [[4.0]])["gave_way"] == [0, 1]


def test_shares_and_greeting():
    greeted = _channels(user=[(2, 4)], assistant=[(0.5, 1.5), (3.5, 5)])
    quiet = _channels(user=[(1.5, 2)])
    no_room = _channels(user=[(0.5, 1)], assistant=[(0.1, 0.4)])
    assert [timing.opening(c) for c in (greeted, quiet, no_room)] == [0.5, False, None]
    table = timing.summary([greeted, quiet], [[], []])
    assert table["greeted"] == [1, 2] and table["greeting_seconds"] == 0.5
    assert table["overlap"] == 0.025 and table["silence"] == pytest.approx(1 - 4.5 / 20)
    assert table["assistant"] == 0.125 and table["answered"] == [1, 2]
    assert table["stop_seconds"] is None and table["taken_over"] == [0, 0]


def test_probabilities_become_spans():
    heard = [0.0, 0.6, 0.4, 0.1, 0.6, 0.6, 0.0, 0.0, 0.9, 0.1, 0.0, 0.4, 0.8, 0.8, 0.8]
    lasting = activity.from_probabilities(heard, 0.1)  # two of 0.2 s and one of 0.1 s are too short
    np.testing.assert_allclose(lasting, [(1.2, 1.5)])
    np.testing.assert_allclose(activity.from_probabilities(heard, 0.06), [(0.06, 0.36)])
    np.testing.assert_allclose(activity.from_probabilities(heard, 0.04), [(0.04, 0.6)])
    assert activity.joined([(0.0, 1.0), (1.4, 2.0), (3.0, 4.0)], 0.5) == [(0.0, 2.0), (3.0, 4.0)]


def test_voice_activity_finds_speech_where_it_was_put():
    said = speech.speak("what digit do you see in the picture", speech.Voice("en-us+m3")).samples
    second = types.SAMPLE_RATE
    audio = np.concatenate([np.zeros(second), said, np.zeros(2 * second), said, np.zeros(second)])
    length = len(said) / second
    found = activity.joined(activity.spans(audio), 0.5)
    expected = [(1.0, 1 + length), (3 + length, 3 + 2 * length)]
    np.testing.assert_allclose(found, expected, atol=0.15)
    assert found == activity.joined(activity.spans(audio), 0.5)  # no state is kept
    noise = 0.05 * np.random.default_rng(0).standard_normal(3 * second)
    assert activity.spans(noise) == [] and activity.spans(np.zeros(100)) == []
    clips = activity.cut(audio, found)
    assert [len(clip) / second for clip in clips] == pytest.approx([length + 0.4] * 2, abs=0.3)
