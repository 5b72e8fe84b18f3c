import numpy as np
import pytest

from mvjax import types
from mvjax.data.records import dataset
from mvjax.dialogues import conversation, speech

RATE = types.SAMPLE_RATE


def tone(seconds: float, *, loud: float = 0.3, before: float = 0.0, after: float = 0.0):
    """Two words, each half of what sounds, with silence around them."""
    n = round(seconds * RATE)
    sound = loud * np.sin(np.arange(n) * 0.1)
    samples = np.concatenate([np.zeros(round(before * RATE)), sound, np.zeros(round(after * RATE))])
    half = seconds / 2
    words = (
        dataset.Word("one", before, before + half),
        dataset.Word("two", before + half, before + seconds),
    )
    return speech.SynthesizedSpeech(samples.astype(np.float32), words, ())


def test_words_sound_when_they_are_said_and_silence_is_exact_elsewhere():
    rng = np.random.default_rng(1)
    speakers = ("user", "assistant", "user", "assistant")
    said = [tone(0.5 + 0.1 * n, before=0.3, after=0.4) for n in range(4)]
    made = conversation.converse(speakers, said, rng)
    assert made.audio.dtype == np.float32 and made.audio.shape[1] % types.FRAME_SAMPLES == 0
    for row, words in ((0, made.words), (1, made.user_words)):
        assert [w.text for w in words] == ["one", "two"] * 2
        quiet = np.ones(made.audio.shape[1], bool)
        for word in words:
            span = slice(round(word.start * RATE), round(word.end * RATE))
            assert np.sqrt(np.mean(made.audio[row, span] ** 2)) > 0.01
            quiet[max(0, span.start - 600) : span.stop + 600] = False  # the margin that is kept
        assert quiet.mean() > 0.3 and not made.audio[row, quiet].any()


def test_gaps_are_where_the_words_are():
    speakers = ("user", "assistant", "user", "assistant")
    said = [tone(0.8, before=0.2 * n) for n in range(4)]
    made = conversation.converse(speakers, said, np.random.default_rng(2))
    starts = [made.user_words[0], made.words[0], made.user_words[2], made.words[2]]
    ends = [made.user_words[1], made.words[1], made.user_words[3]]
    measured = [s.start - e.end for s, e in zip(starts[1:], ends, strict=True)]
    np.testing.assert_allclose(measured, made.gaps, atol=0.06)  # trimming is in steps of 10 ms


@pytest.mark.parametrize(
    ("speaker", "mean", "negative"), [("assistant", 0.30, 0.03), ("user", 0.45, 0.12)]
)
def test_gaps_have_the_documented_distribution(speaker, mean, negative):
    rng = np.random.default_rng(0)
    gap = conversation.GAPS[speaker]
    gaps = np.array([gap.draw(rng) for _ in range(5000)])
    assert gap.least <= gaps.min() and gaps.max() <= gap.most
    assert abs(gaps.mean() - mean) < 0.02
    assert abs((gaps < 0).mean() - negative) < 0.015
    assert np.percentile(gaps, 90) - np.median(gaps) > np.median(gaps) - np.percentile(gaps, 10)


def test_a_word_that_was_timed_into_cut_off_silence_keeps_a_duration():
    said = tone(0.5, before=1.0, after=1.0)
    words = (
        dataset.Word("early", 0.1, 0.4),
        *said.words,
        dataset.Word("late", 1.9, 2.2),
    )
    cut = conversation.trim(speech.SynthesizedSpeech(said.samples, words, ()))
    seconds = len(cut.samples) / RATE
    assert 0.5 <= seconds < 0.6
    assert all(0 <= w.start < w.end <= seconds + 1e-9 for w in cut.words)
    assert [w.text for w in cut.words] == ["early", "one", "two", "late"]


def test_short_utterances_are_not_talked_over():
    rng = np.random.default_rng(3)
    for _ in range(40):
        speakers = ["user", "assistant", "user"]
        made = conversation.converse(speakers, [tone(0.6), tone(0.1), tone(0.6)], rng)
        user = made.user_words
        assert user[2].start - user[1].end >= 0.12  # at least a pause, less the margins
        assert made.gaps[1] >= -0.08


def test_loudness_is_even_and_the_user_varies():
    levels = []
    for seed in range(30):
        said = [tone(1, loud=0.9), tone(1, loud=0.02)]
        made = conversation.converse(["user", "assistant"], said, np.random.default_rng(seed))
        user, assistant = (
            20 * np.log10(np.sqrt(np.mean(row[row != 0] ** 2))) for row in made.audio[::-1]
        )
        assert abs(assistant - conversation.LOUDNESS) < 0.3
        levels.append(user - conversation.LOUDNESS)
    low, high = conversation.USER_GAIN
    assert low - 0.3 < min(levels) < low + 3 and high - 3 < max(levels) < high + 0.3


def test_peaks_stay_below_full_scale():
    click = tone(1.0, loud=0.01)
    click.samples[5000:5010] = 0.9
    made = conversation.converse(["assistant"], [click], np.random.default_rng(0))
    assert abs(np.abs(made.audio).max() - conversation.PEAK) < 1e-3


def test_one_seed_one_conversation():
    once, again, other = (
        conversation.converse(["user", "assistant"], [tone(1)] * 2, np.random.default_rng(seed))
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(once.audio, again.audio)
    assert once.words == again.words and once.gaps != other.gaps


def test_silence_is_refused():
    silent = speech.SynthesizedSpeech(np.zeros(5000, np.float32), (), ())
    with pytest.raises(ValueError, match="expected speech, got 5000 samples of silence"):
        conversation.converse(["user"], [silent], np.random.default_rng(0))
