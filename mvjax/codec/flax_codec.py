"""The Flax Mimi as a `codec.interface.Codec`: every size, batches, and the device that jax runs on."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int32

from mvjax.codec import mimi, seanet
from mvjax.config import frozen

# of the frames before silence: multiples of so many, then four to eight lengths to an octave, so that few are
# compiled; the convolutions leave silence out where it is a quarter of the signal or more
_STEP, _WORTH_IT = 8, 0.75


@dataclasses.dataclass(frozen=True)
class FlaxCodec:
    """`mimi.Mimi` with its parameters and sizes."""

    params: mimi.Params
    config: frozen.MimiConfig

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `Codec.encode`; compiled once for each shape and number of frames before silence."""
        frame = self.config.frame_samples
        frames = -(-audio.shape[1] // frame)
        heard = np.flatnonzero(audio.any(axis=0))
        sounding = -(-(int(heard[-1]) + 1 if len(heard) else 0) // frame)
        sounding += -(-seanet.context(self.config) // frame)  # until the convolutions are at rest
        step = max(_STEP, 1 << max(0, (sounding - 1).bit_length() - 3))
        begin = -(-sounding // step) * step
        sizes = ()
        if begin <= _WORTH_IT * frames:
            audio, sizes = audio[:, : begin * frame], (frames - begin,)
        codes = mimi.run("encode", self.params, audio, config=self.config, sizes=sizes)
        return np.asarray(codes)

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `Codec.decode`; compiled once for each shape."""
        return np.asarray(mimi.run("decode", self.params, codes, config=self.config))

    def stream(self, *, batch: int = 1) -> FlaxCodecStream:
        """As `Codec.stream`."""
        return FlaxCodecStream(self, mimi.start(self.config, batch=batch))


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
