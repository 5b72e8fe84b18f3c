"""What the rest of mvjax asks of a codec; `flax_codec` and `rusty` offer it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32


@runtime_checkable
class CodecStream(Protocol):
    """Streaming in both directions, frame by frame; encoding and decoding are independent."""

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """Returns the codes of the next whole frames."""
        ...

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """Returns the audio of the next frames."""
        ...

    def reset(self) -> None:
        """Goes back to the first frame; nothing of what was encoded or decoded is left."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Audio at 24 kHz <-> codes at 12.5 frames a second."""

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """Returns the codes of whole signals, zero-filled to whole frames."""
        ...

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """Returns the audio of whole signals."""
        ...

    def stream(self, *, batch: int = 1) -> CodecStream:
        """Returns streams at their first frame, `batch` rows each."""
        ...
