"""Scopes: which frames of a row may see the image (reference section 2.7)."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Scope:
    """`frames` frames from frame `start` on.

    In kyuteye_pt, xa_end = frames (None is "end"), and the client's URL says xa_start = start: its layers
    count from the first frame that they are given the image in. kyuteye_mlx counts the frame before it
    compares, so there --xa-start is start + 1. The keys xa_step and xa_delay of kyuteye_pt do nothing:
    xa_step above 1 is refused, and xa_delay is never read.
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
