"""A spoken dialogue before it is encoded: stereo audio at 24 kHz, who says what, and each word's time."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

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

    Raises FileNotFoundError if there is no such file, and ValueError if it is not a complete audio file, has
    another number of channels (None: any) or a rate outside RATES, is empty, longer, or not finite.
    """
    place = str(source) if isinstance(source, Path) else f"audio of {len(source)} bytes"
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"{place}: no such audio file")
    try:
        with soundfile.SoundFile(source if isinstance(source, Path) else io.BytesIO(source)) as f:
            _check_form(place, f, channels)
            _check_length(place, f.frames, f.samplerate, max_seconds)
            rate, promised = f.samplerate, f.frames
            samples = _read(f)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"{place}: expected WAV, FLAC, OGG or MP3 audio: {error}") from error
    if len(samples) != promised:
        raise ValueError(
            f"{place}: its header promises {promised} samples, {len(samples)} can be read; "
            "it is truncated: copy it again"
        )
    # The sums of a filter over larger ones would not be finite.
    if not (np.abs(samples) <= _LOUDEST).all():
        raise ValueError(f"{place}: expected samples within {_LOUDEST:g}, some are NaN or larger")
    return resample(np.ascontiguousarray(samples.T), rate)


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
    return signal.resample_poly(samples, to, rate, axis=1).astype(np.float32)


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


def fit_words(words: Sequence[record.Word], seconds: float) -> tuple[record.Word, ...]:
    """Clips the times of words to [0, seconds]: annotators round them a little outside.

    Raises ValueError listing the words that start after the end: they belong to other audio.
    """
    late = [word for word in words if not word.start <= seconds]
    if late:
        raise ValueError(
            f"word times: expected within {seconds:.2f} s of audio, got {late[:3]}"
            f" ({len(late)} of {len(words)}); is it the transcript of another file?"
        )
    return tuple(
        record.Word(word.text, max(0.0, word.start), min(seconds, max(0.0, word.start, word.end)))
        for word in words
    )


def _read(file: soundfile.SoundFile) -> Float32[np.ndarray, "samples channels"]:
    """Reads block by block, so that a damaged header cannot make it allocate too much."""
    blocks: list[np.ndarray] = [np.zeros((0, file.channels), np.float32)]
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
    return np.concatenate(blocks)


def _check_form(place: str, file: soundfile.SoundFile, channels: int | None) -> None:
    problems = []
    if channels is not None and file.channels != channels:
        meaning = " (left the assistant, right the user)" if channels == 2 else ""
        problems.append(f"expected {channels} channels{meaning}, got {file.channels}")
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
