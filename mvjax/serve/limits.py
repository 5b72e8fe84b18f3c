"""What one client may ask of the server: sizes, rates and times, and the bucket that measures a rate."""

from __future__ import annotations

import dataclasses


class BrokenLimit(ValueError):
    """A client went beyond a limit, or broke the protocol; the text is for the client."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one connection, unless said otherwise. All values are ours."""

    message_bytes: int = 16 * 2**20  # of a WebSocket message, so of an image file
    image_pixels: int = 30_000_000  # decoded; a phone's camera has 12 to 24 million
    audio_bytes: int = 64 * 2**10  # of an audio message: 1.4 s as PCM
    request_bytes: int = 4096  # of a request's JSON
    typed_frames: int = 400  # of typed questions that wait, before another is taken; else refused
    messages: tuple[float, float] = (200.0, 1000.0)  # a second, and at once
    controls: tuple[float, float] = (1.0, 5.0)  # Stop and Restart; more are refused, no more
    images: tuple[float, float] = (0.5, 4.0)
    waiting_image_bytes: int = (
        128 * 2**20
    )  # of all clients' image files; half for those without a slot
    audio: tuple[float, float] = (
        4.0,
        120.0,
    )  # seconds of audio a second, and at once: what a stall held up
    undecoded_bytes: int = 64 * 2**10  # of Opus since the last decoded audio
    queued_frames: int = (
        8  # of user audio that waits for the model: beyond it the oldest are dropped
    )
    unsent_frames: int = 25  # of the model's audio that wait for the socket: likewise
    first_image_seconds: float = 20.0  # for upstream's client to send its image
    silent_seconds: float = 60.0  # without any message
    send_seconds: float = 10.0  # for a message to leave
    resume_seconds: float = 30.0  # that a lost conversation is kept
    resumable_frames: int = 25  # of a conversation that is worth keeping
    waiting: int = 32  # clients in the queue, of all
    minutes: float = 60.0  # of a conversation


class Bucket:
    """A token bucket: `rate` a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = burst, 0.0

    def take(self, amount: float, now: float) -> bool:
        """Returns whether so much is left at a time (seconds), and takes it."""
        elapsed = max(now - self._at, 0.0)
        self._level = min(self._level + elapsed * self._rate, self._burst)
        self._at = now
        if amount > self._level:
            return False
        self._level -= amount
        return True
