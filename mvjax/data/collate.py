"""From records to the arrays of one step: rows on the frame grid, joined, trimmed and stacked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from mvjax import types
from mvjax.config import schema
from mvjax.data import streams
from mvjax.data.records import dataset


def speech_codes(
    record: dataset.Record | dataset.StoredRecord,
    tokenizer: streams.Tokenizer,
    model: schema.ModelConfig,
) -> Int32[np.ndarray, "K T"]:
    """Text, assistant and user rows of a spoken record, undelayed.

    Raises:
      ValueError: if the record's codes do not fit the model.
    """
    audio = record.array()
    if audio.shape[0] != model.codebooks - 1 or audio.size == 0 or audio.max() >= model.audio_vocab:
        raise ValueError(
            f"{record.id}: expected {model.codebooks - 1} codebooks of codes below "
            f"{model.audio_vocab}, got {audio.shape[0]} and {audio.max(initial=0)}; "
            "speech rows need spoken records of the run's codec"
        )
    text = streams.text_stream(
        record.words, audio.shape[1], tokenizer, pad=model.text_pad, epad=model.text_epad
    )
    return np.concatenate([text[None], audio.astype(np.int32)])


def last_word_frame(record: dataset.Record | dataset.StoredRecord) -> int:
    """How many frames to keep so that the last answer stays whole; all if the user speaks last."""
    frames = record.array().shape[1]
    if not record.words or record.turns[-1].speaker != "assistant":
        return frames
    return min(frames, math.floor(record.words[-1].end * types.FRAME_RATE) + 2)


def crop(length: int, frames: int, rng: np.random.Generator) -> slice:
    """A random window of at most `frames`."""
    start = int(rng.integers(max(1, length - frames + 1)))
    return slice(start, min(start + frames, length))


def switch(
    before: int, length: int, after: int, *, keep: int, frames: int, rng: np.random.Generator
) -> tuple[slice, slice, slice]:
    """What remains of three dialogues of these lengths, so that together they have at most `frames`.

    Of the first its end, of the last its start; all three lengths are random; of the middle one at
    least the first `keep` frames stay, and `keep` must not exceed `frames`.
    """
    middle = int(rng.integers(keep, min(frames, length) + 1))
    room = frames - middle
    first = int(rng.integers(min(room, before) + 1))
    last = int(rng.integers(min(room - first, after) + 1))
    return slice(before - first, before), slice(0, middle), slice(0, last)


class Form(NamedTuple):
    """Shape and dtype of one row's image: pixels or features."""

    shape: tuple[int, ...]
    dtype: np.dtype


def pixel_form(size: int) -> Form:
    """What one image is in a batch that has pixels."""
    return Form((size, size, 3), np.dtype(np.uint8))


def stack(
    samples: Sequence[types.Example],
    *,
    codebooks: int,
    frames: int,
    image: Form,
    by_frame: bool = False,
) -> types.Part:
    """Stacks rows of at most `frames`, filled up with -1; `by_frame` tells what each frame sees."""
    part = types.Part(
        codes=np.full((len(samples), codebooks, frames), types.ZERO_TOKEN, np.int32),
        loss_mask=np.zeros((len(samples), frames), bool),
        images=np.zeros((len(samples), *image.shape), image.dtype),
        has_image=np.zeros((len(samples), frames) if by_frame else len(samples), bool),
    )
    for row, sample in enumerate(samples):
        length = sample.codes.shape[1]
        part.codes[row, : len(sample.codes), :length] = sample.codes
        part.loss_mask[row, :length] = sample.loss_mask
        if sample.image is not None:
            part.images[row] = sample.image
            seen = part.has_image[row : row + 1]
            if by_frame:
                seen[:, :length] = sample.sees_image
            else:
                seen[:] = True
    return part
