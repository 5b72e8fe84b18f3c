"""A spoken dialogue before it is encoded: stereo audio at 24 kHz, who says what, and each word's time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float32
from scipy import signal

from mvjax import messages, types
from mvjax.data.records import record

MAX_SECONDS = record.LIMITS.audio_seconds
_LOUDEST = 1e6  # of a sample; 1 is full scale
_BLOCK = 1 << 18  # samples read at a time
RATES = (8_000, 192_000)  # samples per second that are converted; others are taken for damage
LATE = "words after the end of their audio"
_MOST_BYTES = 448_000 // 8  # of MPEG audio a second, at its highest bit rate
_NO_COUNT = 2**63 - 1  # libsndfile's number of samples of a FLAC that does not say
_TAG, _SHIFTS = 10, (21, 14, 7, 0)  # bytes of an ID3v2 header; its size has 7 bits a byte


@dataclasses.dataclass(frozen=True)
class Spoken:
    """One dialogue as audio; the fields of a `record.Record` otherwise.

    The audio is a stereo file, or samples at 24 kHz; row 0 (left) is the assistant, row 1 the user.
    """

    id: str
    audio: Path | Float32[np.ndarray, "2 samples"]
    words: tuple[record.Word, ...] | None
    turns: tuple[record.Turn, ...]  # `turns_of` makes them from words
    user_words: tuple[record.Word, ...] | None = None
    kinds: tuple[str, ...] = ()
    facts: dict[str, str | int] | None = None
    image: bytes | None = None

    def samples(self, *, max_seconds: float = MAX_SECONDS) -> Float32[np.ndarray, "2 samples"]:
        """The audio at 24 kHz, read from its file if it is in one; raises as `read_audio` does."""
        if isinstance(self.audio, Path):
            return read_audio(self.audio, channels=2, max_seconds=max_seconds)
        _check_length(self.id, self.audio.shape[1], types.SAMPLE_RATE, max_seconds)
        return self.audio


def read_audio(
    source: Path | bytes, *, channels: int | None, max_seconds: float = MAX_SECONDS
) -> Float32[np.ndarray, "channels samples"]:
    """Decodes WAV, FLAC, OGG or MP3 (a file, or its bytes) and converts it to 24 kHz.

    An MP3, FLAC or WAV that does not say how long it is is decoded to its end. Raises FileNotFoundError if
    there is no such file, and ValueError if it is not a complete audio file, has another number of channels
    (None: any) or a rate outside RATES, is empty, longer, or not finite.
    """
    place = str(source) if isinstance(source, Path) else f"audio of {len(source)} bytes"
    with _opened(source, place, channels, max_seconds) as (f, promised):
        rate = f.samplerate
        if promised is not None:
            _check_length(place, promised, rate, max_seconds)
        samples = _read(f, max_seconds)
    if promised is None:
        _check_length(place, len(samples), rate, max_seconds)
    elif len(samples) != promised:
        raise ValueError(
            f"{place}: its header promises {promised} samples, {len(samples)} can be read; "
            "it is truncated: copy it again"
        )
    # The sums of a filter over larger ones would not be finite.
    if not (np.abs(samples) <= _LOUDEST).all():
        raise ValueError(f"{place}: expected samples within {_LOUDEST:g}, some are NaN or larger")
    return resample(np.ascontiguousarray(samples.T), rate)


def duration(path: Path, *, channels: int) -> float:
    """Returns the seconds of an audio file, by its header where that counts them; raises as `read_audio`."""
    with _opened(path, str(path), channels, MAX_SECONDS) as (f, promised):
        if promised is not None:
            return promised / f.samplerate
        return len(_read(f, math.inf)) / f.samplerate


def write_audio(path: Path, samples: Float32[np.ndarray, "channels samples"]) -> None:
    """Writes a 16-bit WAV at 24 kHz."""
    try:
        soundfile.write(path, samples.T, types.SAMPLE_RATE, subtype="PCM_16", format="WAV")
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path}: cannot be written: {error}; is the disk full?") from error


def resample(
    samples: Float32[np.ndarray, "channels samples"], rate: int, *, to: int = types.SAMPLE_RATE
) -> Float32[np.ndarray, "channels resampled"]:
    """Resamples from `rate` to `to` hertz, without delay; ceil(n * to / rate) samples."""
    if rate == to:
        return samples
    low_pass = _low_pass(max(rate, to) // math.gcd(rate, to))
    return signal.resample_poly(samples, to, rate, axis=1, window=low_pass).astype(np.float32)


@functools.cache
def _low_pass(most: int) -> Float32[np.ndarray, " taps"]:
    """The filter that `resample_poly` would make anew at each call, in the third of its time."""
    window: Any = ("kaiser", 5.0)
    taps: Any = signal.firwin(20 * most + 1, 1 / most, window=window)
    return taps.astype(np.float32)


def turns_of(
    words: Sequence[record.Word], user_words: Sequence[record.Word] | None
) -> tuple[record.Turn, ...]:
    """Makes a transcript of words: by start, with a new turn where the speaker changes."""
    said = [("assistant", w) for w in words] + [("user", w) for w in user_words or ()]
    said.sort(key=lambda item: item[1].start)
    return tuple(
        record.Turn(speaker, " ".join(word.text.strip() for _, word in turn))
        for speaker, turn in itertools.groupby(said, key=lambda item: item[0])
    )


def fit_words(seconds: float, *sides: Sequence[record.Word]) -> tuple[tuple[record.Word, ...], ...]:
    """Clips the times of each side's words to [0, seconds], and leaves out words that start after the end.

    Annotators round times a little outside. Raises ValueError with the late words if they are more than half
    of all: they belong to other audio.
    """
    words = [word for side in sides for word in side]
    late = [word for word in words if not word.start <= seconds]
    if 2 * len(late) > len(words):
        raise ValueError(
            f"word times: expected within {seconds:.2f} s of audio, got {late[:3]}"
            f" ({len(late)} of {len(words)}); is it the transcript of another file?"
        )
    return tuple(
        tuple(
            record.Word(w.text, max(0.0, w.start), min(seconds, max(0.0, w.start, w.end)))
            for w in side
            if w.start <= seconds
        )
        for side in sides
    )


@contextlib.contextmanager
def _opened(
    source: Path | bytes, place: str, channels: int | None, max_seconds: float
) -> Iterator[tuple[soundfile.SoundFile, int | None]]:
    """Gives an open audio file of the right form and its number of samples, None where nothing tells it."""
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"{place}: no such audio file")
    try:
        with _Stream(source if isinstance(source, Path) else io.BytesIO(source)) as f:
            _check_form(place, f, channels)
            if f.format != "MP3" and (f.format != "WAV" or f.frames):
                yield f, f.frames if f.frames != _NO_COUNT else None
                return
        content = source.read_bytes() if isinstance(source, Path) else source
        content = _behind_a_tag(content, max_seconds) if f.format == "MP3" else _unsized(content)
        with _Stream(io.BytesIO(content)) as again:
            yield again, f.frames if again.frames == f.frames else None
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"{place}: expected WAV, FLAC, OGG or MP3 audio: {error}") from error


class _Stream(soundfile.SoundFile):
    """An audio file that is read once: `SoundFile.read` would seek in it, and fails without a count."""

    def seekable(self) -> bool:
        """Whether to seek after a block is read: no."""
        return False


def _unsized(wav: bytes) -> bytes:
    """The WAV with the size that stands for "to the end", instead of the zero that a pipe left."""
    at = wav.find(b"data") + 4
    return wav[:at] + b"\xff" * 4 + wav[at + 4 :]


def _behind_a_tag(mp3: bytes, max_seconds: float) -> bytes:
    """The MP3 with an empty ID3v2 tag, as large as its audio can be, instead of its own.

    libsndfile estimates the length of an MP3 without a Xing, Info or VBRI frame from its size and its first
    frames, and never reads on: so the estimate becomes too large. A count does not change.
    """
    if mp3.startswith(b"ID3"):
        footer = _TAG if mp3[5] & 0x10 else 0
        mp3 = mp3[_TAG + footer + sum(b << s for b, s in zip(mp3[6:_TAG], _SHIFTS)) :]
    size = min(_MOST_BYTES * len(mp3), int(_MOST_BYTES * max_seconds), 2**28 - 1)
    return b"ID3\x03\0\0" + bytes(size >> shift & 127 for shift in _SHIFTS) + bytes(size) + mp3


def _read(file: soundfile.SoundFile, max_seconds: float) -> Float32[np.ndarray, "samples channels"]:
    """Reads to the end, or past max_seconds; in blocks, as a damaged header may promise too much."""
    blocks: list[np.ndarray] = [np.zeros((0, file.channels), np.float32)]
    left = max_seconds * file.samplerate
    while left >= 0 and len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
        left -= len(block)
    return np.concatenate(blocks)


def _check_form(place: str, file: soundfile.SoundFile, channels: int | None) -> None:
    problems = []
    if channels is not None and file.channels != channels:
        meaning = " (left the assistant, right the user)" if channels == 2 else ""
        wanted = messages.counted(channels, "channel")
        problems.append(f"expected {wanted}{meaning}, got {file.channels}")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        problems.append(f"expected a rate of {RATES[0]} to {RATES[1]} Hz, got {file.samplerate}")
    if problems:
        raise ValueError(f"{place}: {messages.names(problems, between='; ')}; convert the file")


def _check_length(place: str, count: int, rate: int, max_seconds: float) -> None:
    if count <= 0:
        raise ValueError(f"{place}: expected audio, got no samples")
    if count > max_seconds * rate:
        raise ValueError(
            f"{place}: at most {max_seconds:g} s of audio, got {count / rate:.1f} s; "
            "cut it or raise max_seconds"
        )
