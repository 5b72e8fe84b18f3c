"""eSpeak NG: samples at 24 kHz, words and phonemes in time order and inside the sound."""

import subprocess
import sys

import numpy as np
import pytest

from mvjax import types
from mvjax.dialogues import speech
from mvjax.digits import voices

TEXT = "no it is not a seven it is a three"


@pytest.fixture(scope="module")
def spoken():
    return speech.speak(TEXT, voices.ASSISTANT)


def test_sound_is_audible_speech_of_plausible_length(spoken):
    seconds = len(spoken.samples) / types.SAMPLE_RATE
    assert spoken.samples.dtype == np.float32
    assert 1.0 < seconds < 4.0
    assert 0.05 < np.abs(spoken.samples).max() <= 1.0


def test_every_word_has_its_time_in_order(spoken):
    assert [word.text for word in spoken.words] == TEXT.split()
    starts = [word.start for word in spoken.words]
    assert starts == sorted(starts)
    assert all(word.end > word.start for word in spoken.words)
    assert spoken.words[-1].end <= len(spoken.samples) / types.SAMPLE_RATE


def test_a_word_sounds_while_its_span_lasts(spoken):
    loudness = []
    for word in spoken.words:
        first, last = (round(t * types.SAMPLE_RATE) for t in (word.start, word.end))
        loudness.append(np.abs(spoken.samples[first:last]).max())
    assert min(loudness) > 0.02


def test_phonemes_cover_the_sound(spoken):
    assert spoken.phonemes[0].start == 0
    for before, after in zip(spoken.phonemes, spoken.phonemes[1:], strict=False):
        assert before.end == after.start
    sounds = [p.text for p in spoken.phonemes if not p.text.startswith("_")]
    assert len(sounds) >= 20


def test_a_faster_voice_takes_less_time():
    slow = speech.speak(TEXT, speech.Voice("en-us", rate=140))
    fast = speech.speak(TEXT, speech.Voice("en-us", rate=220))
    assert len(fast.samples) < 0.8 * len(slow.samples)


@pytest.mark.parametrize("voice", [voices.ASSISTANT, *voices.TRAIN_USERS, *voices.TEST_USERS])
def test_every_voice_of_the_world_speaks(voice):
    assert len(speech.speak("hello", voice).samples) > 0.2 * types.SAMPLE_RATE


def test_voices_of_the_test_split_are_held_out():
    assert not set(voices.TEST_USERS) & {*voices.TRAIN_USERS, voices.ASSISTANT}


EVERY_VOICE = """
import hashlib
from mvjax.dialogues import speech, tts
engine = tts.Espeak()
for voice in (engine.assistant, *engine.users):
    for text in ("is it red", "no it is blue"):
        samples = speech.speak(text, engine._voice(voice)).samples
        print(voice, hashlib.sha256(samples.tobytes()).hexdigest())
"""


def test_samples_follow_from_text_and_voice_alone():
    voice = voices.TEST_USERS[0]
    first = speech.speak("is it a seven", voice).samples
    speech.speak("what digit is this", voices.TEST_USERS[1])
    np.testing.assert_array_equal(speech.speak("is it a seven", voice).samples, first)


def test_two_processes_give_the_same_samples_in_every_voice():
    first, second = (
        subprocess.run([sys.executable, "-c", EVERY_VOICE], capture_output=True, check=True).stdout
        for _ in range(2)
    )
    assert first == second and len(first.splitlines()) > 20


def test_unknown_voice_and_empty_text_are_refused():
    with pytest.raises(ValueError, match="known voice, got 'xx-nobody'"):
        speech.speak("hello", speech.Voice("xx-nobody"))
    with pytest.raises(ValueError, match="at least one word"):
        speech.speak("  ", voices.ASSISTANT)
