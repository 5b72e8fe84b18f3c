"""Words that forced alignment finds in speech are those that were said; where nothing is, it finds none."""

import itertools

import numpy as np

from mvjax.dialogues import speech
from mvjax.digits import voices, world
from mvjax.eval import codec_check
from mvjax.eval.health import recognize

NAMES = world.DIGITS[:6]


def test_words_cut_where_alignment_finds_them_are_those_that_were_said():
    align = recognize.aligner()

    def cut(text: str) -> list[codec_check.WordClip]:
        samples = speech.speak(text, voices.ASSISTANT).samples
        return codec_check.cut_at(samples, [(w.text, w.start, w.end) for w in align(samples, text)])

    training = [f"{start} {name}" for name in NAMES for start in ("it is a", "here is a")]
    classifier = codec_check.WordClassifier([word for text in training for word in cut(text)])
    held_out = [word for name in NAMES for word in cut(f"this is a {name}") if word.text != "this"]
    assert len(held_out) == 3 * len(NAMES)
    assert classifier.accuracy(held_out) >= 0.9
    mislabeled = [codec_check.WordClip(b.text, a.samples) for a, b in itertools.pairwise(held_out)]
    assert classifier.accuracy(mislabeled) <= 0.2


def test_alignment_agrees_with_the_synthesizers_word_times_and_forgets_the_clip_before():
    align = recognize.aligner()
    text = "the digit at the top left is a three"
    said = speech.speak(text, voices.ASSISTANT)
    found = align(said.samples, text)
    assert [word.text for word in found] == text.split()
    off = [a.start - b.start for a, b in zip(found, said.words, strict=True)]
    assert np.median(np.abs(off)) <= 0.02 and np.abs(off).max() <= 0.1
    align(said.samples[::-1], "it is blue")
    assert align(said.samples, text) == found
    assert align(np.zeros(24_000, np.float32), "not a word of this was said") == []
