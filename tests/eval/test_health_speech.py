"""Word error rates, the user's own recognizer, and recordings from files."""

import sys

import numpy as np
import pytest

from mvjax.data.speech import spoken
from mvjax.eval.health import recognize, recordings

CLIPS = [np.full(n, 0.1, np.float32) for n in (2400, 4800, 7200)]
SECONDS = """
import sys, wave
for path in sys.argv[1:]:
    print(wave.open(path).getnframes() / 24000, "seconds")
"""


def test_word_errors_are_of_all_words_together():
    said = ["The digit is seven.", "", "okay"]
    found = recognize.word_errors(said, ["the digit is eleven", "so", ""])
    assert (found["words"], found["word_error_rate"]) == (5, 0.6)
    assert [found[k] for k in ("substitutions", "deletions", "insertions")] == [1, 1, 1]
    assert recognize.word_errors(said, ["the DIGIT, is seven", "", "okay"])["word_error_rate"] == 0
    assert recognize.word_errors([""], ["hello"])["word_error_rate"] is None


def test_a_command_hears_every_clip_at_once(tmp_path):
    script = tmp_path / "asr.py"
    script.write_text(SECONDS)
    hear = recognize.command(f"{sys.executable} '{script}'")
    assert recognize.hear_all(hear, [CLIPS[:2], [], CLIPS[2:]]) == [
        "0.1 seconds 0.2 seconds", "", "0.3 seconds",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no-such-recognizer", "no such command: no-such-recognizer"),
        ("sh -c 'echo broken >&2; exit 3'", "failed with status 3: broken"),
        ("false", "failed with status 1: it printed no error"),
        ("sh -c 'echo one'", "expected 3 lines on its output, one for each file, got 1"),
    ],
)
def test_a_command_that_fails_says_how(line, message):
    with pytest.raises(ValueError, match=message):
        recognize.command(line)(CLIPS)


def test_recordings_are_of_the_kind_of_their_folder(tmp_path):
    for name in ("a.wav", "pauses/b.wav", "interruptions/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        spoken.write_audio(tmp_path / name, CLIPS[0][None])
    (tmp_path / "notes.txt").write_text("no audio")
    images = [np.full((2, 2, 3), n, np.uint8) for n in (1, 2)]
    found = recordings.read([tmp_path], images)
    assert [(r.kind, int(r.image[0, 0, 0])) for r in found] == [
        ("question", 1), ("interruption", 2), ("pause", 1),
    ]  # fmt: skip
    assert len(recordings.read([tmp_path / "a.wav"], images)[0].samples) == 2400
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: expected an audio file or a folder with some"):
        recordings.read([tmp_path / "empty"], images)
