"""A trained model with its codec and tokenizer: encodes and decodes speech and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from mvjax import files, tree, types
from mvjax.codec import flax_codec, interface
from mvjax.config import schema
from mvjax.data import tokenizers
from mvjax.nn import model as model_lib
from mvjax.weights import mimi as mimi_weights

_CODEC_BATCH_SIZE = 16
_CODEC_STEP = 8  # frames; padded lengths are multiples of it, so that few are compiled


class Streams(NamedTuple):
    """A finished conversation, frame by frame."""

    text_ids: Int[np.ndarray, "T"]  # written by the model
    audio_codes: Int[np.ndarray, "Q T"]  # spoken by the model
    user_codes: Int[np.ndarray, "U T"]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """The model with its codec and tokenizer."""

    config: schema.Config
    params: tree.Tree  # of the whole model
    codec: interface.Codec
    tokenizer: Any  # a SentencePieceProcessor
    mesh: Mesh | None = None  # that the parameters are placed on; None: on one device

    @property
    def model(self) -> model_lib.VisionSpeech:
        """The module."""
        return model_lib.VisionSpeech(self.config.model)

    def encode_audio(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes int32 [Q, T] of clips float32 [samples] at 24 kHz; the last frame is zero-filled."""
        frames = [-(-len(clip) // types.FRAME_SAMPLES) for clip in clips]
        size = _padded_frames(frames) * types.FRAME_SAMPLES
        codes: list[np.ndarray] = []
        for rows, filled in _codec_batches(len(clips)):
            batch = self.codec.encode(_padded([clips[i] for i in filled], size, np.float32))
            codes += [batch[n][:, : frames[i]] for n, i in enumerate(rows)]
        return codes

    def decode_audio(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Clips float32 [samples] at 24 kHz of codes [Q, T]; of no frames a clip has no samples."""
        frames = [clip.shape[1] for clip in codes]
        if not any(frames):
            return [np.zeros(0, np.float32) for _ in codes]
        size = _padded_frames(frames)
        clips: list[np.ndarray] = []
        for rows, filled in _codec_batches(len(codes)):
            batch = self.codec.decode(_padded([codes[i] for i in filled], size, np.int32))
            clips += [batch[n, : frames[i] * types.FRAME_SAMPLES] for n, i in enumerate(rows)]
        return clips

    def decode_text(self, ids: Int[np.ndarray, " tokens"]) -> str:
        """The text of ids, without PAD, EPAD and absent (-1) ones."""
        return self.tokenizer.decode([int(i) for i in ids if self._is_text(i)])

    def timed_words(self, ids: Int[np.ndarray, " T"]) -> list[tuple[str, int]]:
        """(word, the frame in which it starts) of a text stream."""
        words: list[tuple[str, int]] = []
        for frame, i in enumerate(ids):
            if not self._is_text(i):
                continue
            piece = self.tokenizer.id_to_piece(int(i))
            if piece.startswith("▁") or not words:
                words.append((piece.removeprefix("▁"), frame))
            else:
                words[-1] = (words[-1][0] + piece, words[-1][1])
        return words

    def _is_text(self, token: Any) -> bool:
        return token not in (self.config.model.text_pad, self.config.model.text_epad, -1)


def load(config: schema.Config, params: tree.Tree, mesh: Mesh | None = None) -> LoadedModel:
    """Loads the codec and the tokenizer of the config; puts the parameters on the device, without a mesh.

    On a mesh they are there already. The codec is on the first device of each process.
    """
    codec = mimi_weights.load_mimi(files.resolve(config.frozen.codec), config.codec)
    here = jax.device_put(codec, jax.local_devices()[0])
    params = jax.device_put(params) if mesh is None else params
    codec = flax_codec.FlaxCodec(here, config.codec)
    return LoadedModel(config, params, codec, tokenizers.load(config), mesh)


def _codec_batches(n: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yields (the next clips, the same filled up with copies of the last one: all batches have one size).

    On a CPU one by one: nothing is gained there by a batch, which is one more shape to compile.
    """
    size = 1 if n == 1 or jax.default_backend() == "cpu" else _CODEC_BATCH_SIZE
    for first in range(0, n, size):
        rows = list(range(first, min(first + size, n)))
        yield rows, rows + [rows[-1]] * (size - len(rows))


def _padded(rows: Sequence[Any], size: int, dtype: type) -> np.ndarray:
    """Stacks arrays [..., length], each zero-filled to `size` at its end."""
    out = np.zeros((len(rows), *np.shape(rows[0])[:-1], size), dtype)
    for padded, row in zip(out, rows, strict=True):
        padded[..., : np.shape(row)[-1]] = row
    return out


def _padded_frames(frames: Sequence[int]) -> int:
    return -(-max(frames, default=0) // _CODEC_STEP) * _CODEC_STEP
