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
    picture needs xa_start = start + 1 in kyuteye_mlx, which counts the frame before it compares. Its
    xa_step and xa_delay are no more than names: the one is refused above 1, the other never read.
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


@dataclasses.dataclass(frozen=True)
class AroundImage:
    """Frames counted from image tokens that stand in the row themselves.

        tokens              0 0 1 1 1 0 0 0
        "boi"               0 0 1 1 1 1 1 1
        "boi", end="eoi"    0 0 1 1 1 0 0 0
        "boi", frames=4     0 0 1 1 1 1 0 0
        "eoi"               0 0 0 0 0 1 1 1
        "eoi", frames=2     0 0 0 0 0 1 1 0

    Where they stand is an argument of the model's forward, `image_tokens`. Rows of the released model and
    of mvjax's records hold none, so `mvjax train` has no use for it, and no released runtime can run it:
    kyuteye_pt's `TransformerLayer._maybe_cross_attend` hands no mask on, and `get_xa_scope` asserts one.

    Source: kyuteye/modules/cross_attention.py, `GatedCrossAttention.get_xa_scope`. Differs: with a number
      upstream also keeps the frames before the image.
    """

    start: Literal["boi", "eoi"] = "boi"  # where the image begins, or after its end
    end: Literal["end", "eoi"] = "end"  # of the row, or of the image
    frames: int | None = None  # so many from the start instead; None: to `end`

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 0:
            raise ValueError(f"AroundImage: frames must be 0 or more, got {self}")
        if self.end == "eoi" and (self.start == "eoi" or self.frames is not None):
            raise ValueError(
                f"AroundImage: end='eoi' is for start='boi' without frames, got {self}"
            )

    def __call__(self, image_tokens: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
        """Returns which frames are inside, given which hold an image token."""
        if self.end == "eoi":
            return image_tokens
        reached = jnp.cumsum(image_tokens, axis=1) > 0
        inside = reached if self.start == "boi" else reached & ~image_tokens
        if self.frames is None:
            return inside
        return inside & (jnp.cumsum(inside, axis=1) <= self.frames)
