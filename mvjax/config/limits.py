"""What one record may hold; no import but the standard library's."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LimitsConfig:
    """Limits of one record; one beyond them is a bad record. All values are ours."""

    record_bytes: int = 64 * 2**20  # without its image
    image_bytes: int = 20 * 2**20  # of the encoded file
    image_pixels: int = 50_000_000  # of the decoded one: 150 MB as RGB, up to 800 while decoding
    audio_seconds: float = 1800.0  # of one dialogue: 345 MB as stereo float32 samples
