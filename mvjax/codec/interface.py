"""What the rest of mvjax asks of a codec, whichever code is behind it, and the Flax Mimi in that form."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from mvjax.codec import mimi
from mvjax.config import schema


@runtime_checkable
class Stream(Protocol):
    """One stream of each direction, frame by frame; the two do not know of each other."""

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """Returns the codes of the next whole frames."""
        ...

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """Returns the audio of the next frames."""
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

    def stream(self, *, batch: int = 1) -> Stream:
        """Returns new streams that have heard and said nothing."""
        ...


@dataclasses.dataclass(frozen=True)
class Flax:
    """`codec.mimi` as a `Codec`: every size, and the device that jax runs on.

    Attributes:
      params: of `mimi.Mimi`.
      config: their sizes.
    """

    params: mimi.Params
    config: schema.MimiConfig

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `Codec.encode`; compiled once for each shape."""
        return np.asarray(mimi.encode(self.params, audio, config=self.config))

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `Codec.decode`; compiled once for each shape."""
        return np.asarray(mimi.decode(self.params, codes, config=self.config))

    def stream(self, *, batch: int = 1) -> FlaxStream:
        """As `Codec.stream`."""
        return FlaxStream(self, mimi.start(self.config, batch=batch))


class FlaxStream:
    """`mimi.encode_step` and `decode_step` with their state kept."""

    def __init__(self, codec: Flax, state: mimi.State) -> None:
        self._codec, self._state = codec, state

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `Stream.encode`."""
        c = self._codec
        self._state, codes = mimi.encode_step(c.params, self._state, audio, config=c.config)
        return np.asarray(codes)

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `Stream.decode`."""
        c = self._codec
        self._state, audio = mimi.decode_step(c.params, self._state, codes, config=c.config)
        return np.asarray(audio)
