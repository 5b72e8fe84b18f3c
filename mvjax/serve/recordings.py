"""Audio files of an offline conversation: any that sphn reads, in; a stereo wav, out."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mvjax import files, types

_RATES = (4_000, 768_000)  # of recordings: what a damaged header says beyond is not resampled


def read(path: Path, *, max_seconds: float) -> Float32[np.ndarray, " samples"]:
    """Returns a wav, flac, mp3 or Ogg Vorbis file as mono at 24 kHz.

    Raises:
      ValueError: if there is no such file, it is none of these, longer than `max_seconds`, or not finite.
    """
    import sphn

    try:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        file = sphn.FileReader(str(path))
        if not _RATES[0] <= file.sample_rate <= _RATES[1]:
            raise ValueError(
                f"expected {_RATES[0]} to {_RATES[1]} samples a second, got {file.sample_rate}"
            )
        seconds = file.duration_sec
        if seconds > max_seconds:
            raise ValueError(f"expected at most {max_seconds:g} s, got {seconds:.1f}; cut it")
        samples, rate = sphn.read(str(path), 0, max_seconds)
    except (ValueError, OSError) as error:
        reason = str(error).removeprefix(f'"{path}": ')
        raise ValueError(f"{path}: {reason} (expected wav, flac, mp3 or Ogg Vorbis)") from error
    mono = samples.mean(axis=0, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise ValueError(f"{path}: expected finite samples, some are not; record it again")
    if not mono.size:
        raise ValueError(f"{path}: expected samples, got none; record it again")
    if rate != types.SAMPLE_RATE:
        mono = sphn.resample(mono[None], rate, types.SAMPLE_RATE)[0]
    return mono[: round(samples.shape[1] * types.SAMPLE_RATE / rate)]


def write(path: Path, left: Float32[np.ndarray, " samples"], right: np.ndarray) -> None:
    """Writes a stereo wav of 16 bits at 24 kHz, or leaves the file as it was; beyond 1 is clipped."""
    both = np.clip(np.stack([left, right], axis=1), -1, 1)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(types.SAMPLE_RATE)
        file.writeframes((both * 32767).round().astype("<i2").tobytes())
    files.write_atomic(path, content.getvalue())
