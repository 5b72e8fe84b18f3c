"""How to talk to a model unless told otherwise: silence around questions, and sampling."""

from __future__ import annotations

import dataclasses
import math

_MOST_SECONDS = 3600.0  # of silence


@dataclasses.dataclass(frozen=True)
class TalkConfig:
    """Defaults of a conversation with an export, whose `talk.json` they are.

    Sampling: reference section 1.7.
    """

    lead_in: float = 5.0  # seconds of silence before the first question; the model may greet
    tail: float = 20.0  # seconds of silence after each question, for the answer
    text_temperature: float = 0.7  # 0: greedy
    text_top_k: int = 25  # 0: from all ids
    audio_temperature: float = 0.8
    audio_top_k: int = 250
    voice: str = "en-us"  # of eSpeak NG, which speaks typed questions

    def __post_init__(self) -> None:
        """Checks that numbers are finite and not negative, and silences no longer than an hour."""
        values = dataclasses.asdict(self).items()
        numbers = {name: x for name, x in values if not isinstance(x, str)}
        if bad := {name: x for name, x in numbers.items() if not 0 <= x < math.inf}:
            raise ValueError(f"talk: expected 0 or more, and finite, got {bad}")
        if long := {n: numbers[n] for n in ("lead_in", "tail") if numbers[n] > _MOST_SECONDS}:
            raise ValueError(f"talk: expected at most {_MOST_SECONDS:g} seconds, got {long}")
