"""PyPI `rustymimi`, Mimi in Rust for CPUs, behind the interface of `codec.interface`.

It reads the released file directly and knows its sizes only. On a CPU it needs no compilation and little
memory, which suits serving; batches and accelerators are the Flax codec's.

Its transformers attend to 251 steps, where PyTorch's and (by default) ours attend to 250: from 10 s on its
audio differs a little: by 8e-4 of 1.3 with random weights, and by 1e-6 before that. With
`MimiConfig.context_has_self=False` the Flax codec has 251, too. A stream ends after 8192 steps, 5 minutes and
27 seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from mvjax.config import frozen


@dataclasses.dataclass(frozen=True)
class RustyCodec:
    """A Mimi file as a `Codec`.

    Attributes:
      path: the released file, or one of its structure.
      config: its sizes; only the number of codebooks in use may differ from the release, and
        `context_has_self`, which is taken as False.

    Raises:
      ValueError: for other sizes, naming them.
      ModuleNotFoundError: if the package is not installed, with the remedy.
    """

    path: Path
    config: frozen.MimiConfig

    def __post_init__(self) -> None:
        released = frozen.MimiConfig(
            codebooks=self.config.codebooks, context_has_self=self.config.context_has_self
        )
        differing = [
            f"{f.name}={getattr(self.config, f.name)} (released: {getattr(released, f.name)})"
            for f in dataclasses.fields(released)
            if getattr(self.config, f.name) != getattr(released, f.name)
        ]
        if differing:
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

        One tokenizer serves one stream: its `reset` keeps the last step before the downsampling, so
        that a second stream would start with the end of the first.
        """
        return RustyStream(_tokenizer(self.path, self.config.codebooks), batch)

    @functools.cached_property
    def _whole(self) -> Any:
        """Whole signals leave no state behind, so one tokenizer is enough for all."""
        return _tokenizer(self.path, self.config.codebooks)


class RustyStream:
    """One tokenizer, which keeps its own state; it takes the batch of its first call for good."""

    def __init__(self, tokenizer: Any, batch: int) -> None:
        self._tokenizer, self._batch = tokenizer, batch

    def encode(self, audio: Float32[np.ndarray, "B samples"]) -> Int32[np.ndarray, "B Q T"]:
        """As `CodecStream.encode`."""
        self._check(audio)
        codes = self._tokenizer.encode_step(np.ascontiguousarray(audio[:, None]))
        return np.asarray(codes).astype(np.int32)

    def decode(self, codes: Int32[np.ndarray, "B Q T"]) -> Float32[np.ndarray, "B samples"]:
        """As `CodecStream.decode`."""
        self._check(codes)
        return self._tokenizer.decode_step(np.ascontiguousarray(codes, np.uint32))[:, 0]

    def _check(self, batch: np.ndarray) -> None:
        if len(batch) != self._batch:
            raise ValueError(
                f"stream: expected {self._batch} rows as at its start, got {len(batch)}"
            )


def _tokenizer(path: Path, codebooks: int) -> Any:
    try:
        rustymimi: Any = importlib.import_module("rustymimi")  # its type stubs lack `self`
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the Rust codec needs {error.name!r}: pip install 'mvjax[serve]'"
        ) from error
    return rustymimi.Tokenizer(str(path), num_codebooks=codebooks)
