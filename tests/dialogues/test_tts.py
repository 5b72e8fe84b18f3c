import sys
from pathlib import Path

import numpy as np
import pytest

from mvjax import types
from mvjax.dialogues import tts

PROGRAM = f"{sys.executable} {Path(__file__).with_name('standin_tts.py')}"
LINE = tts.TtsLine("is it red", "400", 1)


def test_espeak_says_lines_in_their_voices():
    engine = tts.Espeak()
    one, other = engine.speak(
        [tts.TtsLine("is it red", engine.assistant, 1), tts.TtsLine("no", "en-us+f2:120:80", 2)]
    )
    assert [w.text for w in one.words] == ["is", "it", "red"] and len(other.words) == 1
    slow, quick = engine.speak([tts.TtsLine("is it red", f"en-us:{r}", 1) for r in (120, 240)])
    assert len(quick.samples) < 0.8 * len(slow.samples)


def test_every_espeak_voice_speaks():
    engine = tts.Espeak()
    lines = [tts.TtsLine("hello", voice, 1) for voice in (engine.assistant, *engine.users)]
    assert all(len(said.samples) > 4000 for said in engine.speak(lines))
    assert len(set(engine.users)) == len(engine.users) > 10


def test_espeak_voices_are_names_with_numbers():
    with pytest.raises(
        ValueError, match="expected NAME\\[:RATE\\[:PITCH\\]\\] .*got 'en-us:quick'"
    ):
        tts.Espeak().speak([tts.TtsLine("hello", "en-us:quick", 1)])


def test_a_command_gets_text_and_voice_and_tells_word_times():
    engine = tts.Command(
        f"{PROGRAM} --say {{text}} --voice {{voice}} --out {{wav}} --times {{json}}",
        assistant="300",
        users=("400", "500"),
    )
    (said,) = engine.speak([LINE])
    assert len(said.samples) == round(0.85 * types.SAMPLE_RATE)
    assert [(w.text, round(w.start, 2)) for w in said.words] == [
        ("is", 0.1),
        ("it", 0.35),
        ("red", 0.6),
    ]
    spectrum = np.abs(np.fft.rfft(said.samples[2400:]))
    hertz = np.argmax(spectrum) * types.SAMPLE_RATE / len(said.samples[2400:])
    assert abs(hertz - 400) < 2


def test_a_command_may_read_its_input_and_words_get_time_by_their_letters():
    (said,) = tts.Command(f"{PROGRAM} --out {{wav}}").speak([tts.TtsLine("a bc def", "", 1)])
    starts = [w.start for w in said.words]
    assert abs(starts[0] - 0.1) < 0.03 and abs(said.words[-1].end - 0.85) < 0.03
    first, second, third = (w.end - w.start for w in said.words)
    np.testing.assert_allclose([second / first, third / first], [1.5, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("true {wav}", "no such audio file"),
        ("none-such {wav}", "'none-such': cannot be run"),
        (f"{PROGRAM} --fail --out {{wav}}", "exit status 1: no voice today"),
        (
            f"{PROGRAM} --wrong --out {{wav}} --times {{json}}",
            "one for each of .'is', 'it', 'red'.",
        ),
    ],
    ids=["no file", "no program", "fails", "other words"],
)
def test_what_a_command_does_wrong_is_said(template, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tts.Command(template).speak([LINE])


@pytest.mark.parametrize(
    ("template", "voices", "message"),
    [
        ("say {text}", {}, "expected {wav} among its arguments"),
        ("say {voice} {wav}", {}, "expected voices of the assistant and the users"),
        ("say {wav}", {"assistant": "a", "users": ("b",)}, "and none without"),
    ],
)
def test_templates_are_checked_at_once(template, voices, message):
    with pytest.raises(ValueError, match=message):
        tts.Command(template, **voices)
