"""How to talk to a model unless told otherwise: silence around questions, and sampling."""

from __future__ import annotations

import dataclasses


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
        """Checks that nothing is negative."""
        values = dataclasses.asdict(self).items()
        low = {name: x for name, x in values if not isinstance(x, str) and x < 0}
        if low:
            raise ValueError(f"talk: expected 0 or more, got {low}")
