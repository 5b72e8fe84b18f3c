"""Text to 24 kHz speech with word and phoneme times, by eSpeak NG."""

from __future__ import annotations

import dataclasses

import numpy as np

from mvjax import types
from mvjax.data.records import record
from mvjax.data.speech import spoken
from mvjax.dialogues import espeak

Voice = espeak.Voice


@dataclasses.dataclass(frozen=True)
class SynthesizedSpeech:
    """One utterance: samples float32 [n] in [-1, 1] at 24 kHz, words and phonemes with their times."""

    samples: np.ndarray
    words: tuple[record.Word, ...]
    phonemes: tuple[record.Word, ...]


def speak(text: str, voice: Voice) -> SynthesizedSpeech:
    """Synthesizes `text`; words are the whitespace-separated words of `text`, in order.

    Raises:
      ValueError: if the text is empty or eSpeak NG does not know the voice.
    """
    raw, events, rate = espeak.synthesize(text, voice)
    samples = spoken.resample(raw.astype(np.float32)[None] / 32768.0, rate)[0]
    seconds = len(samples) / types.SAMPLE_RATE
    phonemes = _phonemes([e for e in events if e[0] == espeak.PHONEME], seconds)
    return SynthesizedSpeech(samples, _words(text, events, seconds), phonemes)


def _words(text: str, events: list[espeak.Event], seconds: float) -> tuple[record.Word, ...]:
    """Times for the whitespace words of `text`; eSpeak positions count characters from 1.

    eSpeak merges short words ("in the", "not a") into one event: their time is shared by letters.
    """
    starts = {}
    for kind, time, position, _, _ in events:
        if kind == espeak.WORD:
            starts.setdefault(position - 1, time)
    words = text.split()
    letters, times, before, position = [0], [0.0], 0, 0
    offsets = []
    for word in words:
        position = text.index(word, position)
        offsets.append(before)
        inside = [t for p, t in starts.items() if position <= p < position + len(word)]
        if inside:
            letters.append(before)
            times.append(min(inside))
        before += len(word)
        position += len(word)
    ends = [time for kind, time, *_ in events if kind == espeak.END]
    end = max(min(seconds, ends[-1]) if ends else seconds, times[-1])
    edges = np.interp([*offsets, before], [*letters, before], [*times, end])
    return tuple(record.Word(w, float(s), float(e)) for w, s, e in zip(words, edges, edges[1:]))


def _phonemes(events: list[espeak.Event], seconds: float) -> tuple[record.Word, ...]:
    ends = [time for _, time, *_ in events[1:]] + [seconds]
    return tuple(
        record.Word(name, start, max(start, end))
        for (_, start, _, _, name), end in zip(events, ends, strict=True)
    )
