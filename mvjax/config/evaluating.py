"""Evaluation while a run trains: which benchmark, how often, how much of it."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """A benchmark that a run is asked every so many steps; it changes nothing about the run."""

    benchmark: str  # as `mvjax eval --benchmark` takes it
    every: int = 1000  # steps
    limit: int = 64  # samples
    modes: tuple[Literal["text", "audio", "blind", "shuffled"], ...] = ("text",)  # of prompts
    data: str | None = None  # folder that local copies of public data lie below
    examples: int = 4  # answers a mode that are kept to look at, with sound if they are spoken
    seed: int = 1  # of the samples

    def __post_init__(self) -> None:
        """Checks the counts."""
        low = {n: getattr(self, n) for n in ("every", "limit") if getattr(self, n) < 1}
        if low or self.examples < 0 or not self.modes:
            raise ValueError(
                "evals: expected every and limit of at least 1, examples of at least 0 and a mode,"
                f" got {self}"
            )
