"""PyPI `rustymimi`, Mimi in Rust for CPUs, behind the interface of `codec.interface`.

It reads the released file directly and knows its sizes only. On a CPU it needs no compilation and little
memory, which suits serving; batches and accelerators are the Flax codec's.

Its transformers attend to 251 steps, where PyTorch's and (by default) ours attend to 250: from 10 s on its
audio differs a little: by 8e-4 of 1.3 with random weights, and by 1e-6 before that. With
`MimiConfig.context_has_self=False` the Flax codec has 251, too.

A tokenizer takes memory for every step that its streams may last: 0.6 kB, so 54 MB an hour, beside 0.4 GB of
weights.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from mvjax import types
from mvjax.config import frozen


@dataclasses.dataclass(frozen=True)
class RustyCodec:
    """A Mimi file as a `Codec`.

    Attributes:
      path: the released file, or one of its structure.
      config: its sizes; only the number of codebooks in use may differ from the release, and
        `context_has_self`, which is taken as False.
      minutes: how long a stream, or a whole signal, may last.

    Raises:
      ValueError: for other sizes, naming them.
      ModuleNotFoundError: if the package is not installed, with the remedy.
    """

    path: Path
    config: frozen.MimiConfig
    minutes: float = 60.0

    def __post_init__(self) -> None:
        if differing := unreleased(self.config):
            raise ValueError(
                f"{self.path}: rustymimi has the released sizes built in, but the config says"
                f" {', '.join(differing)}; use the Flax codec"
            )

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `Codec.encode`."""
        padded = np.pad(audio, ((0, 0), (0, -audio.shape[1] % self.config.frame_samples)))
        return np.asarray(self._whole.encode(padded[:, None])).astype(np.int32)

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `Codec.decode`."""
        return self._whole.decode(np.ascontiguousarray(codes, np.uint32))[:, 0]

    def stream(self, *, batch: int = 1) -> RustyStream:
        """As `Codec.stream`; reads the file again, 2 seconds and 0.4 GB.

        One tokenizer serves one stream at a time. All threads of Python stand still while it is loaded.
        """
        return RustyStream(self._tokenizer(), batch, self._frames)

    @functools.cached_property
    def _whole(self) -> Any:
        """Whole signals leave no state behind, so one tokenizer is enough for all."""
        return self._tokenizer()

    @property
    def _frames(self) -> int:
        return math.ceil(self.minutes * 60 * types.FRAME_RATE)

    def _tokenizer(self) -> Any:
        try:
            rustymimi: Any = importlib.import_module("rustymimi")  # its type stubs lack `self`
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the Rust codec needs {error.name!r}: pip install 'mvjax[serve]'"
            ) from error
        return rustymimi.Tokenizer(
            str(self.path),
            num_codebooks=self.config.codebooks,
            max_seq_len=self._frames * frozen.MIMI_STEPS,
        )


class RustyStream:
    """One tokenizer, which keeps its own state; it takes the batch of its first call for good.

    Either direction ends after `frames`.
    """

    def __init__(self, tokenizer: Any, batch: int, frames: int) -> None:
        self._tokenizer, self._batch = tokenizer, batch
        self._frames, self._taken = frames, {"encode": 0.0, "decode": 0.0}

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `CodecStream.encode`."""
        self._check(audio)
        self._take("encode", audio.shape[1] / types.FRAME_SAMPLES)
        codes = self._tokenizer.encode_step(np.ascontiguousarray(audio[:, None]))
        return np.asarray(codes).astype(np.int32)

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `CodecStream.decode`."""
        self._check(codes)
        self._take("decode", float(codes.shape[2]))
        return self._tokenizer.decode_step(np.ascontiguousarray(codes, np.uint32))[:, 0]

    def reset(self) -> None:
        """As `CodecStream.reset`, but that the codes of the first frame follow a frame of silence.

        The tokenizer's own reset keeps the last step before the downsampling: of silence, here.
        """
        self._tokenizer.reset()
        self._tokenizer.encode_step(np.zeros((self._batch, 1, types.FRAME_SAMPLES), np.float32))
        self._tokenizer.reset()
        self._taken = {"encode": 0.0, "decode": 0.0}

    def _check(self, batch: np.ndarray) -> None:
        if len(batch) != self._batch:
            raise ValueError(
                f"stream: expected {self._batch} rows as at its start, got {len(batch)}"
            )

    def _take(self, direction: str, frames: float) -> None:
        taken = self._taken[direction] + frames
        if taken > self._frames:
            raise ValueError(
                f"stream: {self._frames / types.FRAME_RATE / 60:g} minutes to {direction} are over;"
                " open the codec with more `minutes`"
            )
        self._taken[direction] = taken


def unreleased(config: frozen.MimiConfig) -> list[str]:
    """Returns the sizes, named, that differ from those of the release and that Rust has built in."""
    released = frozen.MimiConfig(
        codebooks=config.codebooks, context_has_self=config.context_has_self
    )
    return [
        f"{f.name}={getattr(config, f.name)} (released: {getattr(released, f.name)})"
        for f in dataclasses.fields(released)
        if getattr(config, f.name) != getattr(released, f.name)
    ]
