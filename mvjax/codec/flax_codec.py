"""The Flax Mimi as a `codec.interface.Codec`: every size, batches, and the device that jax runs on."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from jaxtyping import Float32, Int32

from mvjax.codec import mimi, sounding
from mvjax.config import frozen

# frames: lengths of what is encoded on a CPU are multiples of it, so that few are compiled
_STEP = 32


@dataclasses.dataclass(frozen=True)
class FlaxCodec:
    """`mimi.Mimi` with its parameters and sizes."""

    params: mimi.Params
    config: frozen.MimiConfig

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `Codec.encode`; compiled once for each shape, on a CPU for each number of rows."""
        if jax.default_backend() != "cpu" or not audio.size:
            return np.asarray(mimi.run("encode", self.params, audio, config=self.config))
        (B, samples), frame = audio.shape, self.config.frame_samples
        T = -(-samples // frame)
        size = -(-T // _STEP) * _STEP
        audio = np.pad(audio, ((0, 0), (0, size * frame - samples))).reshape(B, size, frame)
        x = self._convolutions(audio)
        codes = mimi.run("encode_convolved", self.params, x, config=self.config)
        return np.asarray(codes)[:, :, :T]

    @functools.cached_property
    def _convolutions(self) -> sounding.Convolutions:
        return sounding.Convolutions(self.params, self.config)

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `Codec.decode`; compiled once for each shape, on a CPU once for all: each row is a stream."""
        if jax.default_backend() != "cpu" or not codes.size:
            return np.asarray(mimi.run("decode", self.params, codes, config=self.config))
        T, chunk = codes.shape[2], mimi.cpu_frames(self.config)
        pieces = np.split(np.pad(codes, ((0, 0), (0, 0), (0, -T % chunk))), -(-T // chunk), axis=2)
        stream, rows = self.stream(), []
        for row in range(len(codes)):
            stream.reset()
            rows.append([stream.decode(piece[row : row + 1]) for piece in pieces])
        return np.block(rows)[:, : T * self.config.frame_samples]

    def stream(self, *, batch: int = 1) -> FlaxCodecStream:
        """As `Codec.stream`."""
        # placed as the states that a step returns, or it would be compiled for both
        start = jax.device_put(mimi.start(self.config, batch=batch), jax.local_devices()[0])
        return FlaxCodecStream(self, start)


class FlaxCodecStream:
    """The codec with the state of one stream."""

    def __init__(self, codec: FlaxCodec, state: mimi.MimiState) -> None:
        self._codec, self._start, self._state = codec, state, state

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `CodecStream.encode`."""
        return self._step("encode_step", audio)

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `CodecStream.decode`."""
        return self._step("decode_step", codes)

    def reset(self) -> None:
        """As `CodecStream.reset`."""
        self._state = self._start

    def _step(self, method: str, frames: np.ndarray) -> np.ndarray:
        c = self._codec
        self._state, made = mimi.run(method, c.params, self._state, frames, config=c.config)
        return np.asarray(made)
