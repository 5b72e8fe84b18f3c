"""A model under test: it looks, hears, reads, writes and talks, in batches of fixed size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import sentencepiece
from jaxtyping import Float, Int, UInt8

from mvjax import files, tree, types
from mvjax.codec import mimi
from mvjax.config import schema
from mvjax.data import images, streams
from mvjax.data.records import record
from mvjax.nn import model as model_lib
from mvjax.runtimes.jax import generate
from mvjax.weights import mimi as mimi_weights

ROWS = 64  # of a batch; the last one is filled up, so that every call has the same shape
_CODEC_ROWS = 16
_CODEC_STEP = 8  # frames; few lengths, few compilations
_LONGEST_ANSWER = 40  # tokens


class Talked(NamedTuple):
    """What the model wrote and said while it heard the user, frame by frame."""

    text_ids: Int[np.ndarray, "B T"]
    audio_codes: Int[np.ndarray, "B Q T"]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """The model with its codec and tokenizer.

    Attributes:
      config: of the run.
      params: the whole parameter tree.
      codec: Mimi's parameters.
      tokenizer: a SentencePieceProcessor.
    """

    config: schema.Config
    params: tree.Tree
    codec: tree.Tree
    tokenizer: Any

    @property
    def model(self) -> model_lib.VisionSpeech:
        """The module."""
        return model_lib.VisionSpeech(self.config.model)

    def answer_text(
        self,
        questions: Sequence[str],
        pictures: UInt8[np.ndarray, "B height width 3"],
        *,
        has_image: bool,
    ) -> list[str]:
        """Writes an answer to each written question, greedily."""
        turns = [[record.Turn("user", question)] for question in questions]
        prompts = [streams.prompt(turn, self.tokenizer) for turn in turns]
        lengths = np.array([len(p) for p in prompts], np.int32)
        padded = np.zeros((len(prompts), int(lengths.max())), np.int32)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = prompt
        answers: list[str] = []
        for rows, filled in _batches(len(questions), ROWS):
            ids = generate.generate_text(
                self.model,
                self.params,
                padded[filled],
                lengths[filled],
                self._look(pictures[filled]),
                np.full(len(filled), has_image),
                max_tokens=_LONGEST_ANSWER,
                stop_ids=(streams.BOS, streams.EOS),
            )
            answers += [self.words(row) for row in np.asarray(ids)[: len(rows)]]
        return answers

    def converse(
        self,
        user_codes: Int[np.ndarray, "B U T"],
        pictures: UInt8[np.ndarray, "B height width 3"],
        *,
        has_image: bool = True,
    ) -> Talked:
        """Listens to the user and talks, greedily, for as long as the user's codes last."""
        parts: list[Talked] = []
        size = min(ROWS, len(user_codes))
        for rows, filled in _batches(len(user_codes), size):
            out = generate.generate(
                self.model,
                self.params,
                user_codes[filled],
                self._look(pictures[filled]),
                np.full(len(filled), has_image),
            )
            text, audio = np.asarray(out.text_ids), np.asarray(out.audio_codes)
            parts.append(Talked(text[: len(rows)], audio[: len(rows)]))
        return Talked(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def gates(
        self,
        codes: Int[np.ndarray, "1 K T"],
        picture: UInt8[np.ndarray, "height width 3"],
    ) -> Float[np.ndarray, "L T"]:
        """Gate opening of every layer in every frame of a finished conversation."""
        output = _forward(self.model, self.params, codes, images.normalize(picture)[None])
        return np.asarray(output.gates)[:, 0]

    def hear(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes [Q, T] of clips float32 [samples]; a last part of a frame counts as one."""
        frames = [-(-len(clip) // types.FRAME_SAMPLES) for clip in clips]
        longest = _rounded(max(frames))
        codes: list[np.ndarray] = []
        for rows, filled in _batches(len(clips), _codec_rows(len(clips))):
            audio = np.zeros((len(filled), longest * types.FRAME_SAMPLES), np.float32)
            for row, i in zip(audio, filled, strict=True):
                row[: len(clips[i])] = clips[i]
            batch = np.asarray(mimi.encode(self.codec, audio, config=self.config.codec))
            codes += [batch[n][:, : frames[i]] for n, i in enumerate(rows)]
        return codes

    def say(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Samples of codes [Q, T], at 24 kHz."""
        longest = _rounded(max(c.shape[1] for c in codes))
        clips: list[np.ndarray] = []
        for rows, filled in _batches(len(codes), _codec_rows(len(codes))):
            padded = np.zeros((len(filled), self.config.codec.codebooks, longest), np.int32)
            for row, i in zip(padded, filled, strict=True):
                row[:, : codes[i].shape[1]] = codes[i]
            batch = np.asarray(mimi.decode(self.codec, padded, config=self.config.codec))
            sizes = [codes[i].shape[1] * types.FRAME_SAMPLES for i in rows]
            clips += [batch[n, :size] for n, size in enumerate(sizes)]
        return clips

    def words(self, ids: Int[np.ndarray, " tokens"]) -> str:
        """The text of ids; PAD, EPAD and absent ids are silence."""
        m = self.config.model
        return self.tokenizer.decode(
            [int(i) for i in ids if i not in (m.text_pad, m.text_epad, -1)]
        )

    def timed_words(self, ids: Int[np.ndarray, " T"]) -> list[tuple[str, int]]:
        """(word, the frame in which it starts) of a text stream."""
        m = self.config.model
        found: list[tuple[str, int]] = []
        for frame, i in enumerate(int(i) for i in ids):
            if i in (m.text_pad, m.text_epad, -1):
                continue
            piece = self.tokenizer.id_to_piece(i)
            if piece.startswith("▁") or not found:
                found.append((piece.removeprefix("▁"), frame))
            else:
                found[-1] = (found[-1][0] + piece, found[-1][1])
        return found

    def _look(self, pictures: UInt8[np.ndarray, "B height width 3"]) -> Any:
        return _look(self.model, self.params, images.normalize(pictures))


def load(config: schema.Config, params: tree.Tree) -> LoadedModel:
    """Puts the parameters on the device and loads the codec and the tokenizer of the config."""
    codec = mimi_weights.load_mimi(files.resolve(config.frozen.codec), config.codec)
    tokenizer = sentencepiece.SentencePieceProcessor(
        model_file=str(files.resolve(config.frozen.tokenizer))
    )
    return LoadedModel(config, jax.device_put(params), jax.device_put(codec), tokenizer)


def _batches(n: int, size: int) -> Iterator[tuple[list[int], list[int]]]:
    """(the next rows, the same filled up to `size` with copies of the last one)."""
    for first in range(0, n, size):
        rows = list(range(first, min(first + size, n)))
        yield rows, rows + [rows[-1]] * (size - len(rows))


def _codec_rows(n: int) -> int:
    return 1 if n == 1 else _CODEC_ROWS


def _rounded(frames: int) -> int:
    return -(-frames // _CODEC_STEP) * _CODEC_STEP


@functools.partial(jax.jit, static_argnums=0)
def _look(model: model_lib.VisionSpeech, params: tree.Tree, pixels: jax.Array) -> Any:
    return model.apply({"params": params}, pixels, method="look")


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    model: model_lib.VisionSpeech, params: tree.Tree, codes: jax.Array, pixels: jax.Array
) -> Any:
    return model.apply({"params": params}, codes, pixels, depth_codebooks=0)
