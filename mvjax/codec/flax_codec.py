"""The Flax Mimi as a `codec.interface.Codec`: every size, batches, and the device that jax runs on."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int32

from mvjax.codec import mimi
from mvjax.config import frozen


@dataclasses.dataclass(frozen=True)
class FlaxCodec:
    """`codec.mimi` with its parameters.

    Attributes:
      params: of `mimi.Mimi`.
      config: its sizes.
    """

    params: mimi.Params
    config: frozen.MimiConfig

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `Codec.encode`; compiled once for each shape."""
        return np.asarray(mimi.encode(self.params, audio, config=self.config))

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `Codec.decode`; compiled once for each shape."""
        return np.asarray(mimi.decode(self.params, codes, config=self.config))

    def stream(self, *, batch: int = 1) -> FlaxCodecStream:
        """As `Codec.stream`."""
        return FlaxCodecStream(self, mimi.start(self.config, batch=batch))


class FlaxCodecStream:
    """`mimi.encode_step` and `mimi.decode_step`, with their state."""

    def __init__(self, codec: FlaxCodec, state: mimi.MimiState) -> None:
        self._codec, self._state = codec, state

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `CodecStream.encode`."""
        c = self._codec
        self._state, codes = mimi.encode_step(c.params, self._state, audio, config=c.config)
        return np.asarray(codes)

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `CodecStream.decode`."""
        c = self._codec
        self._state, audio = mimi.decode_step(c.params, self._state, codes, config=c.config)
        return np.asarray(audio)
