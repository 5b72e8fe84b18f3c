"""The word classifier: cuts on the frame grid, tells tones apart, notices a codec that loses them."""

import numpy as np

from mvjax.eval import codec_check

PITCH = {"low": 220.0, "mid": 700.0, "high": 2500.0}
FRAME = 1920


def _utterance(words: list[str], rng: np.random.Generator):
    """Each word is a chirp from its own pitch, 3 frames long; starts are inside their first frame."""
    samples = 0.003 * rng.standard_normal(len(words) * 3 * FRAME).astype(np.float32)
    spans = []
    for i, word in enumerate(words):
        start = i * 3 * FRAME + int(rng.integers(0, FRAME // 2))
        t = np.arange(2 * FRAME) / 24_000
        tone = np.sin(2 * np.pi * PITCH[word] * rng.uniform(0.95, 1.05) * (t + t**2))
        samples[start : start + len(t)] += 0.3 * tone[: len(samples) - start].astype(np.float32)
        spans.append((word.capitalize() + ",", start / 24_000))
    return samples, spans


def _utterances(n: int, seed: int):
    rng = np.random.default_rng(seed)
    return [_utterance(list(rng.choice(list(PITCH), size=4)), rng) for _ in range(n)]


def _classifier() -> codec_check.WordClassifier:
    return codec_check.WordClassifier(
        [w for u in _utterances(12, seed=0) for w in codec_check.cut(*u)]
    )


def test_words_are_cut_from_their_first_frame_to_the_next_words():
    samples = np.arange(10 * FRAME, dtype=np.float32)
    words = codec_check.cut(samples, [("One,", 0.10), ("two", 0.30), ("-", 0.5), ("three", 0.6)])
    assert [w.text for w in words] == ["one", "two", "-", "three"]
    lead = 480
    assert words[0].samples[0] == FRAME - lead and words[0].samples[-1] == 3 * FRAME - 1
    assert words[3].samples[0] == 7 * FRAME - lead and words[3].samples[-1] == 10 * FRAME - 1


def test_an_utterance_without_words_is_cut_into_none():
    assert codec_check.cut(np.zeros(5 * 1920, np.float32), []) == []


def test_a_perfect_codec_keeps_the_ceiling_and_a_deaf_one_falls_to_chance():
    classifier, held_out = _classifier(), _utterances(10, seed=1)
    clean = [samples for samples, _ in held_out]
    perfect = codec_check.check(classifier, held_out, clean)
    assert perfect.original == perfect.codec >= 0.95
    assert (perfect.words, perfect.vocabulary) == (40, 3)
    rng = np.random.default_rng(2)
    noise = [rng.standard_normal(len(x)).astype(np.float32) for x in clean]
    deaf = codec_check.check(classifier, held_out, noise)
    assert deaf.original == perfect.original
    assert deaf.codec < 0.6 and 1 / 3 <= deaf.chance < 0.6


def test_a_codec_may_return_another_length():
    classifier, held_out = _classifier(), _utterances(3, seed=3)
    longer = codec_check.check(classifier, held_out, [np.pad(x, (0, 700)) for x, _ in held_out])
    shorter = codec_check.check(classifier, held_out, [x[:-40] for x, _ in held_out])
    assert longer.codec == longer.original and shorter.codec >= 0.9


def test_summary_is_plain_json():
    result = codec_check.CodecAccuracy(0.98765, 0.5, 0.1, 40, 3)
    assert codec_check.summary(result) == {
        "original": 0.9877,
        "codec": 0.5,
        "chance": 0.1,
        "words": 40,
        "vocabulary": 3,
    }
