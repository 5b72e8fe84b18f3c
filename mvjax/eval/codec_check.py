"""Intelligibility of codec output: a word classifier trained on original speech recognizes its words.

The classifier is never trained on codec output. Original, re-coded and generated words are cut by the same
rule: on the 12.5 Hz grid (`cut`), from the frame in which a word starts to the frame in which the next one
starts, as the model's text stream gives no finer times for its own speech; or where forced alignment finds
them in each (`cut_at`), which flowing speech needs, as its short words are hardly longer than a frame.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import signal

from mvjax import types

_WINDOW, _HOP, _FFT = 600, 240, 1024  # samples: 25 ms windows every 10 ms
_BANDS, _SLOTS = 32, 10  # mel bands; a word's frames are resampled to this many slots
_LONGEST = 10  # frames (0.8 s) that one word may take
_LEAD = 2  # hops kept from before the start frame
_FLOOR = 1e-4  # of the mel energies, against log(0)


# (samples float32 [n] at 24 kHz, [(word, start in seconds), ...] in order)
Utterance = tuple[np.ndarray, list[tuple[str, float]]]


@dataclasses.dataclass(frozen=True)
class WordClip:
    """One word cut out of speech: its text (lower case, no punctuation) and samples, float32 [n]."""

    text: str
    samples: np.ndarray


@dataclasses.dataclass(frozen=True)
class CodecAccuracy:
    """Accuracy of the word classifier before and after the codec."""

    original: float  # on held-out utterances as synthesized: the upper bound
    codec: float  # on the same words after encoding and decoding
    chance: float  # the share of the most frequent word
    words: int  # number of words
    vocabulary: int  # number of distinct words


def cut(samples: np.ndarray, words: Sequence[tuple[str, float]]) -> list[WordClip]:
    """Cuts an utterance (as of `Utterance`) into words on the frame grid."""
    frames = [int(start * types.FRAME_RATE + 1e-6) for _, start in words]
    total = -(-len(samples) // types.FRAME_SAMPLES)
    spans = []
    for (text, _), first, after in zip(words, frames, [*frames, total][1:], strict=True):
        last = min(max(after, first + 1), first + _LONGEST)
        spans.append((text, first * types.FRAME_SECONDS, last * types.FRAME_SECONDS))
    return cut_at(samples, spans)


def cut_at(samples: np.ndarray, words: Sequence[tuple[str, float, float]]) -> list[WordClip]:
    """Cuts words out of an utterance by their starts and ends in seconds, with 20 ms before each."""
    cuts = []
    for text, start, end in words:
        begin = max(0, round(start * types.SAMPLE_RATE) - _LEAD * _HOP)
        piece = samples[begin : round(end * types.SAMPLE_RATE)]
        bare = text.lower().strip(".,;:!?\"'")
        if bare and len(piece) >= _WINDOW:
            cuts.append(WordClip(bare, piece))
    return cuts


class WordClassifier:
    """A small word classifier (log-mel features, shrunk linear discriminants)."""

    def __init__(self, words: Sequence[WordClip], *, seed: int = 0) -> None:
        """Trains on words of original speech, and on each with a shift of up to 30 ms and noise."""
        from sklearn import discriminant_analysis, pipeline, preprocessing

        rng = np.random.default_rng(seed)
        pieces = [w.samples for w in words] + [_disturb(w.samples, rng) for w in words]
        self._model = pipeline.make_pipeline(
            preprocessing.StandardScaler(),
            # Shrunk covariances stand noise better than logistic regression, SVMs or an MLP did.
            discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1),
        )
        self._model.fit(_features(pieces), [w.text for w in words] * 2)

    def accuracy(self, words: Sequence[WordClip]) -> float:
        """Share of words recognized; NaN without words."""
        if not words:
            return float("nan")
        return self._model.score(_features([w.samples for w in words]), [w.text for w in words])


def check(
    classifier: WordClassifier, utterances: Sequence[Utterance], coded: Sequence[np.ndarray]
) -> CodecAccuracy:
    """Compares the accuracy on held-out words before and after the codec.

    `coded` are the samples of each after encoding and decoding, here cut or zero-filled to its length.
    """
    original: list[WordClip] = []
    after: list[WordClip] = []
    for (samples, words), decoded in zip(utterances, coded, strict=True):
        original += cut(samples, words)
        fitted = np.pad(decoded[: len(samples)], (0, max(0, len(samples) - len(decoded))))
        after += cut(fitted, words)
    counts = collections.Counter(w.text for w in original)
    return CodecAccuracy(
        original=classifier.accuracy(original),
        codec=classifier.accuracy(after),
        chance=max(counts.values()) / len(original) if original else float("nan"),
        words=len(original),
        vocabulary=len(counts),
    )


def _disturb(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifts by up to 30 ms and adds white noise at 10 to 30 dB below the speech."""
    shifted = np.roll(samples, int(rng.integers(-720, 721)))
    level = np.sqrt(np.mean(np.square(samples)) + 1e-9) * 10 ** (-rng.uniform(10, 30) / 20)
    return (shifted + level * rng.standard_normal(len(samples))).astype(np.float32)


def _features(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """[n, slots * bands + 1]: log-mel slots less their mean, and the log of the audible length."""
    return np.stack([_describe(piece) for piece in pieces])


def _describe(samples: np.ndarray) -> np.ndarray:
    mel = _log_mel(samples)
    loudness = mel.mean(axis=1)
    audible = np.flatnonzero(loudness > loudness.max() - 4.0)  # nepers below the loudest frame
    mel = mel[audible[0] : audible[-1] + 1]
    at = np.linspace(0, len(mel) - 1, _SLOTS)
    low = np.minimum(at.astype(int), max(len(mel) - 2, 0))
    high = np.minimum(low + 1, len(mel) - 1)
    slots = mel[low] + (at - low)[:, None] * (mel[high] - mel[low])
    return np.append((slots - slots.mean()).ravel(), np.log(len(mel)))


def _log_mel(samples: np.ndarray) -> np.ndarray:
    """[frames, bands]."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
    spectrum = np.abs(np.fft.rfft(windows * signal.get_window("hann", _WINDOW), _FFT)) ** 2
    return np.log(spectrum @ _mel_filters() + _FLOOR)


def _mel_filters() -> np.ndarray:
    """[FFT bins, bands]: triangles, evenly spaced on the mel scale from 60 Hz to 8 kHz."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (60.0, 8000.0))
    edges = 700 * (10 ** (np.linspace(low, high, _BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / types.SAMPLE_RATE)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None)


def summary(result: CodecAccuracy) -> dict[str, Any]:
    """The result as plain JSON values, to four decimals."""
    return {key: round(value, 4) for key, value in vars(result).items()}
