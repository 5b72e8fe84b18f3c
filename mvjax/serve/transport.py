"""How audio crosses the wire: Ogg Opus by sphn, as upstream's client speaks it, or int16 PCM.

sphn 0.2 keeps an incomplete packet without bound and does not check a page's checksum; so the bytes since the
last decoded audio are capped, a connection has a reader of its own, and its first error is its last.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from mvjax import types
from mvjax.serve import limits as limits_lib


@runtime_checkable
class Transport(Protocol):
    """Both directions of one connection; each is used by one thread at a time."""

    def receive(self, data: bytes) -> Float32[np.ndarray, " samples"]:
        """Returns the user's audio in the payload of a message, any number of samples.

        Raises:
          limits.BrokenLimit: if it is damaged; the connection has to end.
        """
        ...

    def send(self, pcm: Float32[np.ndarray, " samples"]) -> bytes:
        """Returns the payload for a frame of the model's audio."""
        ...


def make(kind: str, limits: limits_lib.Limits) -> Transport:
    """Returns the transport of a new connection, "opus" or "pcm"."""
    return Pcm() if kind == "pcm" else Opus(limits)


class Pcm:
    """int16, little-endian, mono, 24 kHz."""

    def receive(self, data: bytes) -> Float32[np.ndarray, " samples"]:
        """As `Transport.receive`."""
        if len(data) % 2:
            raise limits_lib.BrokenLimit(
                f"audio: expected int16 samples, got {len(data)} bytes, an odd number"
            )
        return np.frombuffer(data, "<i2").astype(np.float32) / 2**15

    def send(self, pcm: Float32[np.ndarray, " samples"]) -> bytes:
        """As `Transport.send`."""
        return (np.clip(pcm, -1, 1) * (2**15 - 1)).astype("<i2").tobytes()


class Opus:
    """One Ogg Opus stream each way; a frame is one packet and one page."""

    def __init__(self, limits: limits_lib.Limits) -> None:
        import sphn

        self._reader: Any = sphn.OpusStreamReader(types.SAMPLE_RATE)
        self._writer: Any = sphn.OpusStreamWriter(types.SAMPLE_RATE)
        self._undecoded, self._limit = 0, limits.undecoded_bytes

    def receive(self, data: bytes) -> Float32[np.ndarray, " samples"]:
        """As `Transport.receive`."""
        try:
            pcm = self._reader.append_bytes(data)  # 5 s of audio at most, else it raises
        except ValueError as error:
            raise limits_lib.BrokenLimit(f"audio: damaged Ogg Opus: {error}") from None
        self._undecoded = 0 if len(pcm) else self._undecoded + len(data)
        if self._undecoded > self._limit:
            raise limits_lib.BrokenLimit(
                f"audio: no Opus packet ended in {self._undecoded} bytes, expected one in {self._limit}"
            )
        return pcm

    def send(self, pcm: Float32[np.ndarray, " samples"]) -> bytes:
        """As `Transport.send`; the first has the stream's headers before it."""
        return self._writer.append_pcm(np.clip(pcm, -1, 1))
