"""Scopes: which frames of a row may see the image (reference section 2.7)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Scope:
    """`frames` frames from frame `start` on.

    In kyuteye_pt's words xa_start = start (0 is "start") and xa_end = frames (None is "end"). The same
    picture needs xa_start = start + 1 in kyuteye_mlx, which counts the frame before it compares.
    """

    start: int = 0
    frames: int | None = None  # None: to the end

    def __post_init__(self) -> None:
        if self.start < 0 or (self.frames is not None and self.frames < 0):
            raise ValueError(f"Scope: start and frames must be 0 or more, got {self}")

    def __call__(self, positions: Int[Array, "*batch"]) -> Bool[Array, "*batch"]:
        """Returns whether the frames at these positions, counted from the row's start, are inside."""
        inside = positions >= self.start
        if self.frames is None:
            return inside
        return inside & (positions < self.start + self.frames)


def around_image(
    image_tokens: Bool[Array, "B T"],
    *,
    start: Literal["boi", "eoi"],
    end: Literal["end", "eoi"] | int = "end",
) -> Bool[Array, "B T"]:
    """Returns the frames that see the image where its tokens stand in the row themselves.

        tokens            0 0 1 1 1 0 0 0
        "boi", "end"      0 0 1 1 1 1 1 1
        "boi", "eoi"      0 0 1 1 1 0 0 0
        "boi", 4          0 0 1 1 1 1 0 0
        "eoi", "end"      0 0 0 0 0 1 1 1
        "eoi", 2          0 0 0 0 0 1 1 0

    The mask goes where `has_image` is asked for. The released model has no image tokens in its rows.

    Args:
      image_tokens: where they stand.
      start: at the beginning of the image, or after its end.
      end: of the row, of the image, or so many frames after the start.

    Raises:
      ValueError: for a scope that starts where the image ends and ends there too.
    Source: kyuteye/modules/cross_attention.py, `GatedCrossAttention.get_xa_scope`. Differs: with a number
      upstream also keeps the frames before the image.
    """
    if (start, end) == ("eoi", "eoi"):
        raise ValueError("scope: starts and ends at 'eoi', which leaves no frame; use start='boi'")
    if end == "eoi":
        return image_tokens
    reached = jnp.cumsum(image_tokens, axis=1) > 0
    inside = reached if start == "boi" else reached & ~image_tokens
    if end == "end":
        return inside
    return inside & (jnp.cumsum(inside, axis=1) <= end)
