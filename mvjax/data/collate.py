"""Examples to batches: codes of a record on the frame grid; rows padded and stacked as a part of a batch."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Text, assistant and user codebooks of a spoken record, without delays."""
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


def stack(examples: Sequence[types.Example], *, rows: int, spec: types.Part) -> types.Part:
    """Stacks examples as rows, padded with -1 to the frames and codebooks of the spec (`batch_spec`).

    Rows without an example are absent throughout: -1, without an image, a target of nothing.
    """
    part = types.Part(*(np.zeros((rows, *leaf.shape[1:]), leaf.dtype) for leaf in spec))
    part.codes.fill(types.ZERO_TOKEN)
    for row, example in enumerate(examples):
        length = example.codes.shape[1]
        part.codes[row, : len(example.codes), :length] = example.codes
        part.loss_mask[row, :length] = example.loss_mask
        if example.image is not None:
            part.images[row] = example.image
            if part.has_image.ndim == 2:  # by frame
                part.has_image[row, :length] = example.sees_image
            else:
                part.has_image[row] = True
    return part
