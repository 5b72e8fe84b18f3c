"""The dimension legend, and the containers that cross from one part of mvjax to another.

Letters used in shape annotations, einsum strings and prose alike:

    B batch        T frames (12.5 per second)     S image tokens (keys and values)
    D backbone width   E image-encoder width      F MLP hidden width
    N attention heads  H width of one head        L stacked layers
    K input codebooks, text is row 0              Q generated codebooks
    V text vocabulary  C audio codes per codebook G gate hidden width

Depth-transformer sizes are the same letters in prose and lower case in einsums (d, n, h, f).
Rare dimensions are words: "B height width 3".
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

FRAME_RATE = 12.5  # frames per second
FRAME_SECONDS = 0.08
SAMPLE_RATE = 24_000  # audio samples per second
FRAME_SAMPLES = 1920  # audio samples per frame

ZERO_TOKEN = -1  # adds no embedding as an input, and is never a target
UNGENERATED = -2  # in place of an id that the model chooses; never an input

REPORTED_LAYERS = 10  # a frame's gate activation is over the last so many; reference section 2.8


@dataclasses.dataclass(frozen=True)
class Example:
    """One training example (a row of a batch) on the 12.5 Hz grid, before delays and batching.

    Attributes:
      id: names the record (and its crop) for logs and bad-record lists.
      codes: int32 [K, T]; row 0 text, then the assistant's and the user's audio codes; -1 where absent.
      loss_mask: bool [T]; text targets that count.
      sees_image: bool [T]; frames that see the image, if there is one.
      image: uint8 [height, width, 3], or the encoder's features [S, E], or None.
    """

    id: str
    codes: np.ndarray
    loss_mask: np.ndarray
    sees_image: np.ndarray
    image: np.ndarray | None


class Part(NamedTuple):
    """Rows of one kind (speech or speechless), all of one length.

    Attributes:
      codes: int32 [B, K, T]; -1 where absent (also where a row is shorter than T).
      loss_mask: bool [B, T]; text targets that count.
      images: uint8 [B, height, width, 3], or the encoder's features [B, S, E]; zeros where a row has none.
      has_image: bool [B], or [B, T] with `data.small_talk_image="absent"`; False switches cross-attention
        off for the row or the frame: the result is exactly that of plain Moshi.
    """

    codes: np.ndarray
    loss_mask: np.ndarray
    images: np.ndarray
    has_image: np.ndarray


class Batch(NamedTuple):
    """One step's data: the two parts have their own row counts and lengths, so no padding is paid for."""

    speech: Part
    speechless: Part
