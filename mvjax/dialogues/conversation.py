"""Places the utterances of a dialogue in time: start, loudness, and the times of all words.

    assistant              no it is not a seven                       it is red
    user       is it a seven |<-- gap ------------> what colour is it |<- gap ->
                             may be negative: an overlap

All constants are ours. Gaps are skewed as in studies of turn-taking: most are a quarter to half a second,
some are long, some negative. The assistant rarely overlaps, so that it has heard the question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from mvjax import types
from mvjax.data.records import record
from mvjax.dialogues import speech

LEAD = (0.2, 0.8)  # seconds of silence before the first utterance
TAIL = (0.5, 1.0)  # after the last
LOUDNESS = -23.0  # decibels below full scale: root mean square of an utterance's sounding part
USER_GAIN = (-8.0, 2.0)  # decibels of the user beside the assistant, one draw a dialogue
PEAK = 0.97  # of full scale; louder utterances are scaled down

_FLOOR = -40.0  # decibels relative to the loudest frame: quieter ends are trimmed as silence
_FRAME = 240  # samples: 10 ms
_MARGIN = 2  # frames kept on both sides
_LEAST = 0.02  # seconds of a word: the text stream drops words without duration
_PAUSE = 0.2  # seconds at least between two utterances of one speaker
_OVERLAP = 0.5  # share of an utterance that the next may cover, at most


@dataclasses.dataclass(frozen=True)
class Gap:
    """Seconds from the end of an utterance to the start of the next: least + Gamma(shape, scale), cut."""

    least: float
    shape: float
    scale: float
    most: float

    def draw(self, rng: np.random.Generator) -> float:
        """Draws one gap."""
        return min(self.most, self.least + rng.gamma(self.shape, self.scale))


GAPS = {  # by who speaks next
    "assistant": Gap(-0.12, 4.0, 0.105, 1.2),  # mean 0.30 s, 3% negative
    "user": Gap(-0.30, 3.0, 0.25, 2.0),  # mean 0.45 s, 12% negative
}


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Both sides of a dialogue; whole frames of the codec, exact zeros where someone is silent."""

    audio: Float32[np.ndarray, "2 samples"]  # row 0 the assistant, row 1 the user
    words: tuple[record.Word, ...]  # the assistant's
    user_words: tuple[record.Word, ...]
    gaps: tuple[float, ...]  # seconds before each utterance but the first


def converse(
    speakers: Sequence[str], said: Sequence[speech.SynthesizedSpeech], rng: np.random.Generator
) -> Conversation:
    """Places utterances in order, with gaps, loudness and the times of their words."""
    user_gain = rng.uniform(*USER_GAIN)
    starts: list[int] = []
    gaps: list[float] = []
    ends = {"assistant": 0, "user": 0}  # samples
    words: dict[str, list[record.Word]] = {"assistant": [], "user": []}
    sounds = []
    for n, (speaker, spoken) in enumerate(zip(speakers, said, strict=True)):
        cut = trim(spoken)
        sounds.append(_at_loudness(cut.samples, user_gain if speaker == "user" else 0.0))
        if starts:
            before = len(sounds[n - 1])
            gap = max(GAPS[speaker].draw(rng), -_OVERLAP * before / types.SAMPLE_RATE)
            start = starts[-1] + before + round(gap * types.SAMPLE_RATE)
            pause = round(_PAUSE * types.SAMPLE_RATE)
            start = max(start, ends[speaker] + pause) if ends[speaker] else start
            gaps.append((start - starts[-1] - before) / types.SAMPLE_RATE)
        else:
            start = round(rng.uniform(*LEAD) * types.SAMPLE_RATE)
        starts.append(start)
        ends[speaker] = start + len(sounds[n])
        at = start / types.SAMPLE_RATE
        words[speaker] += [record.Word(w.text, at + w.start, at + w.end) for w in cut.words]
    seconds = max(ends.values()) / types.SAMPLE_RATE + rng.uniform(*TAIL)
    frames = int(np.ceil(seconds * types.FRAME_RATE))
    audio = np.zeros((2, frames * types.FRAME_SAMPLES), np.float32)
    for speaker, start, sound in zip(speakers, starts, sounds, strict=True):
        audio[int(speaker == "user"), start : start + len(sound)] = sound
    return Conversation(audio, tuple(words["assistant"]), tuple(words["user"]), tuple(gaps))


def trim(spoken: speech.SynthesizedSpeech) -> speech.SynthesizedSpeech:
    """Trims silence at both ends, and shifts the words; raises ValueError if all is silence."""
    first, last = sounding(spoken.samples)
    seconds = (last - first) / types.SAMPLE_RATE
    shift = first / types.SAMPLE_RATE

    def inside(span: record.Word) -> record.Word:
        start = float(np.clip(span.start - shift, 0.0, seconds - _LEAST))
        return record.Word(
            span.text, start, float(np.clip(span.end - shift, start + _LEAST, seconds))
        )

    return speech.SynthesizedSpeech(
        spoken.samples[first:last],
        tuple(inside(w) for w in spoken.words),
        tuple(inside(p) for p in spoken.phonemes),
    )


def sounding(samples: Float32[np.ndarray, " samples"]) -> tuple[int, int]:
    """First and last sample above the threshold, with a margin; raises ValueError if all is silence."""
    level = _levels(samples)
    if level.size == 0 or level.max() < 1e-5:
        raise ValueError(
            f"expected speech, got {len(samples)} samples of silence; can the voice say this text?"
        )
    loud = np.flatnonzero(level >= level.max() * 10 ** (_FLOOR / 20))
    first = max(0, int(loud[0]) - _MARGIN) * _FRAME
    return first, min(len(samples), (int(loud[-1]) + 1 + _MARGIN) * _FRAME)


def _levels(samples: Float32[np.ndarray, " samples"]) -> Float32[np.ndarray, " frames"]:
    """Root mean square of every 10 ms."""
    padded = np.pad(samples, (0, -len(samples) % _FRAME)).reshape(-1, _FRAME)
    return np.sqrt(np.mean(padded**2, axis=1))


def _at_loudness(
    samples: Float32[np.ndarray, " samples"], decibels: float
) -> Float32[np.ndarray, " samples"]:
    """Scaled to LOUDNESS plus `decibels`, below PEAK."""
    level = _levels(samples)
    loud = level[level >= level.max() * 10 ** (_FLOOR / 20)]
    wanted = 10 ** ((LOUDNESS + decibels) / 20) / np.sqrt(np.mean(loud**2))
    return samples * np.float32(min(wanted, PEAK / np.abs(samples).max()))
