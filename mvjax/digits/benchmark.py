"""The digits benchmark: questions about held-out digits in held-out voices, scored on the text."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from mvjax import types
from mvjax.dialogues import speech
from mvjax.digits import talk, voices, world
from mvjax.eval import benchmarks

_EACH = 24  # questions of each kind without a limit


@dataclasses.dataclass(frozen=True)
class DigitsSample(benchmarks.Sample):
    """A question about a test image; `truth` is its `world.Facts`."""

    asked: str = ""  # as in `talk.WordedQuestion`
    scan: int = 0  # as in `world.Scene`
    voice: str = ""


class DigitsBenchmark(benchmarks.Benchmark):
    """The kinds are `talk.KINDS`."""

    name = "digits"
    modes = benchmarks.MODES
    overall = "kinds"
    # questions come early in the dialogues that it is trained on; the longest answer takes 4 s
    protocol = benchmarks.PromptProtocol(
        lead_in=0.32, tail=5.12, answer_from="question start", max_tokens=40
    )

    def samples(self, limit: int | None, seed: int) -> list[DigitsSample]:
        """Draws questions, one image each, kinds and voices in turn; without a limit 24 of each kind."""
        count = _EACH * len(talk.KINDS) if limit is None else limit
        drawn = []
        for i, scene in enumerate(world.scenes("test", count, seed)):
            rng = np.random.default_rng([seed, i])
            asked = talk.ask(talk.KINDS[i % len(talk.KINDS)], scene.facts, rng)
            voice = voices.TEST_USERS[(i // len(talk.KINDS)) % len(voices.TEST_USERS)]
            late = int(rng.integers(types.FRAME_SAMPLES))
            drawn.append(
                DigitsSample(
                    id=f"{asked.kind}-{scene.id}",
                    kind=asked.kind,
                    prompt=asked.text,
                    truth=scene.facts,
                    image=functools.partial(np.asarray, scene.image),
                    shows=scene.facts,
                    speech=functools.partial(_spoken, asked.text, voice, late),
                    asked=asked.asked,
                    scan=scene.scan,
                    voice=voice.name,
                )
            )
        return drawn

    def score(self, sample: Any, said: str) -> float:
        """As `talk.score`."""
        return float(talk.score(sample.kind, sample.asked, sample.truth, said))

    def chance(self, kind: str) -> float:
        """As `talk.chance`."""
        return talk.chance(kind)


def _spoken(text: str, voice: speech.Voice, late: int) -> np.ndarray:
    """The question, `late` samples after the start of a frame."""
    return np.pad(speech.speak(text, voice).samples, (late, 0))
