"""Augments the user's audio as a microphone may record it: gain, noise, reverberation, the assistant's echo.

Probabilities and ranges are those of Moshi's instruct stage (Moshi, section 4.4; whether MoshiVis was trained
so is not known); what else noise and reverberation need is our choice and marked so.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from scipy import signal

from mvjax import types
from mvjax.data.speech import spoken

_LOG = logging.getLogger(__name__)
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_SILENT = 1e-5  # RMS below which a stream has no level to relate noise to
_REVERB_SECONDS = (0.1, 0.4)  # in which a room's sound falls by 60 dB; ours
_REVERB_SHARE = 0.3  # of the direct sound's energy; ours


@dataclasses.dataclass(frozen=True)
class Augment:
    """Settings of the augmentation; their text is part of the key of the codes that are made with them."""

    seed: int = (
        0  # of all draws; with the dialogue's id and the copy's number it gives the same audio
    )
    noise: str | None = None  # folder of noise recordings; None: pink noise (ours)
    p_gain: float = 0.5  # probability of a random gain
    gain_db: tuple[float, float] = (-24.0, 15.0)
    p_noise: float = 0.3
    noise_db: tuple[float, float] = (-30.0, 6.0)  # relative to the user's speech
    p_silence: float = 0.5  # probability that a stretch of noise is silence
    stretch_seconds: float = 30.0  # of one stretch, at most
    p_echo: float = 0.3  # probability of the assistant's echo and reverberation, together
    echo_scale: float = 0.2  # at most
    echo_seconds: tuple[float, float] = (0.1, 0.5)  # its delay


class Augmenter:
    """Augments dialogues; lists the noise folder once, FileNotFoundError if it has no audio."""

    def __init__(self, settings: Augment) -> None:
        self._settings = settings
        self._files: Sequence[Path] = ()
        if settings.noise is not None:
            folder = Path(settings.noise)
            self._files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not self._files:
                raise FileNotFoundError(f"{folder}: expected audio files {SUFFIXES}, found none")

    def __call__(
        self, audio: Float32[np.ndarray, "2 samples"], *, id: str, copy: int
    ) -> Float32[np.ndarray, "2 samples"]:
        """Returns the audio with the user's side (row 1) augmented; a function of seed, id and copy."""
        s = self._settings
        rng = np.random.default_rng([s.seed, zlib.crc32(id.encode()), copy])
        gain, noise, echo = rng.random(3) < (s.p_gain, s.p_noise, s.p_echo)
        user = audio[1]
        if gain:
            user = user * _ratio(rng.uniform(*s.gain_db))
        if echo:
            user = _reverberate(user + self._echo(audio[0], rng), rng)
        if noise:
            user = user + self._noise(user, rng)
        return np.stack([audio[0], np.clip(user, -1, 1).astype(np.float32)])

    def _echo(self, assistant: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        s = self._settings
        delay = round(rng.uniform(*s.echo_seconds) * types.SAMPLE_RATE)
        late = np.concatenate([np.zeros(delay, np.float32), assistant])[: len(assistant)]
        return late * np.float32(rng.uniform(0, s.echo_scale))

    def _noise(self, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Stretches of noise and silence; the noise level is relative to the user's speech level."""
        s = self._settings
        heard = user[np.abs(user) > _SILENT]
        level = float(np.sqrt(np.mean(heard**2))) if len(heard) else 0.0
        if level < _SILENT:
            return np.zeros_like(user)
        level *= _ratio(rng.uniform(*s.noise_db))
        out = np.zeros(len(user), np.float32)
        start = 0
        while start < len(user):
            length = 1 + int(rng.uniform(0, s.stretch_seconds) * types.SAMPLE_RATE)
            length = min(length, len(user) - start)
            if rng.random() >= s.p_silence:
                stretch = self._recording(length, rng)
                scale = level / max(float(np.sqrt(np.mean(stretch**2))), _SILENT)
                out[start : start + length] = stretch * np.float32(scale)
            start += length
        return out

    def _recording(self, length: int, rng: np.random.Generator) -> np.ndarray:
        if not self._files:
            return _pink(length, rng)
        sound = _mono(self._files[int(rng.integers(len(self._files)))])
        if sound is None:
            return _pink(length, rng)
        start = int(rng.integers(max(len(sound) - length, 0) + 1))
        return np.resize(sound[start:], length)  # repeats a recording that is too short


@functools.lru_cache(maxsize=1)
def _mono(path: Path) -> np.ndarray | None:
    """A noise recording; None, with a warning, if it cannot be read: it costs no dialogue."""
    try:
        return spoken.read_audio(path, channels=None).mean(0)
    except (ValueError, OSError) as error:
        _LOG.warning("pink noise instead of a recording: %s", error)
        return None


def _ratio(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))


def _pink(length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls by 3 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(max(length, 2)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return np.fft.irfft(spectrum, max(length, 2))[:length].astype(np.float32)


def _reverberate(user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds the tail of a room: noise that decays exponentially."""
    seconds = rng.uniform(*_REVERB_SECONDS)
    steps = np.arange(round(seconds * types.SAMPLE_RATE))
    tail = rng.standard_normal(len(steps)) * 10 ** (-3 * steps / len(steps))
    tail *= np.sqrt(_REVERB_SHARE / np.sum(tail**2))
    wet = signal.fftconvolve(user, tail)[: len(user)]
    return (user + wet).astype(np.float32)
