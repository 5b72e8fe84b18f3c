"""From records to the arrays of one step: rows on the frame grid, joined, trimmed and stacked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8

from mvjax import config as config_lib
from mvjax import types
from mvjax.data import images, records, streams


def pixels(
    record: records.Record, encoder: config_lib.SiglipConfig
) -> UInt8[np.ndarray, "size size 3"] | None:
    """The record's image as the encoder's square, or None.

    Raises:
      ValueError: if the bytes are not an image.
    """
    if record.image is None:
        return None
    picture = images.decode(record.image)
    return images.resize_square(picture, encoder.image_size, resampler=encoder.resampler)


def speech_codes(
    record: records.Record, tokenizer: streams.Tokenizer, model: config_lib.ModelConfig
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


def last_word_frame(record: records.Record) -> int:
    """How many frames to keep so that the last answer stays whole; all if the user speaks last."""
    frames = record.array().shape[1]
    if not record.words or record.turns[-1].speaker != "assistant":
        return frames
    return min(frames, math.floor(record.words[-1].end * types.FRAME_RATE) + 2)


def crop(
    codes: Int32[np.ndarray, "K T"], frames: int, rng: np.random.Generator
) -> Int32[np.ndarray, "K cropped"]:
    """A random window of at most `frames`."""
    start = int(rng.integers(max(1, codes.shape[1] - frames + 1)))
    return codes[:, start : start + frames]


def switch(
    before: Int32[np.ndarray, "K before"],
    codes: Int32[np.ndarray, "K T"],
    after: Int32[np.ndarray, "K after"],
    *,
    keep: int,
    frames: int,
    rng: np.random.Generator,
) -> Int32[np.ndarray, "K joined"]:
    """Joins the end of one dialogue, a dialogue, and the start of a third, within `frames`.

    The lengths of all three are random; of the middle one at least the first `keep` frames stay,
    and `keep` must not exceed `frames`.
    """
    codes = codes[:, : int(rng.integers(keep, min(frames, codes.shape[1]) + 1))]
    room = frames - codes.shape[1]
    first = int(rng.integers(min(room, before.shape[1]) + 1))
    last = int(rng.integers(min(room - first, after.shape[1]) + 1))
    return np.concatenate([before[:, before.shape[1] - first :], codes, after[:, :last]], axis=1)


def stack(samples: Sequence[types.Sample], *, codebooks: int, frames: int, size: int) -> types.Part:
    """Stacks rows of at most `frames`, filled up with -1."""
    part = types.Part(
        codes=np.full((len(samples), codebooks, frames), types.ZERO_TOKEN, np.int32),
        loss_mask=np.zeros((len(samples), frames), bool),
        images=np.zeros((len(samples), size, size, 3), np.uint8),
        has_image=np.zeros(len(samples), bool),
    )
    for row, sample in enumerate(samples):
        length = sample.codes.shape[1]
        part.codes[row, : len(sample.codes), :length] = sample.codes
        part.loss_mask[row, :length] = sample.loss_mask
        if sample.image is not None:
            part.images[row] = sample.image
            part.has_image[row] = True
    return part
