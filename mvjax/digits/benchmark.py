"""The digits benchmark: questions about held-out digits in held-out voices, scored on the text."""

from __future__ import annotations

import dataclasses

import numpy as np

from mvjax import types
from mvjax.dialogues import speech
from mvjax.digits import talk, voices, world
from mvjax.eval import benchmarks

_LEAD = 4  # frames of silence before the user speaks
_ANSWER = 64  # frames (5.1 s) for the answer; the longest takes 4 s


@dataclasses.dataclass(frozen=True)
class DigitsQuestion(benchmarks.Question):
    """A question about a test image; `truth` is its `world.Facts`."""

    asked: str  # as in `talk.WordedQuestion`
    scan: int  # as in `world.Scene`


class DigitsBenchmark:
    """As `benchmarks.Benchmark`; the kinds are `talk.KINDS`."""

    def questions(self, *, per_kind: int, seed: int) -> list[DigitsQuestion]:
        """Draws questions, one image each, voices in turn."""
        kinds = talk.KINDS * per_kind
        drawn = []
        for i, scene in enumerate(world.scenes("test", len(kinds), seed)):
            rng = np.random.default_rng([seed, i])
            asked = talk.ask(kinds[i], scene.facts, rng)
            voice = voices.TEST_USERS[(i // len(talk.KINDS)) % len(voices.TEST_USERS)]
            begin = _LEAD * types.FRAME_SAMPLES + int(rng.integers(types.FRAME_SAMPLES))
            drawn.append((asked, scene, voice.name, begin, speech.speak(asked.text, voice).samples))
        longest = max(begin + len(samples) for *_, begin, samples in drawn)
        size = (-(-longest // types.FRAME_SAMPLES) + _ANSWER) * types.FRAME_SAMPLES
        return [
            DigitsQuestion(
                id=f"{asked.kind}-{scene.id}",
                kind=asked.kind,
                text=asked.text,
                image=scene.image,
                truth=scene.facts,
                voice=voice,
                audio=np.pad(samples, (begin, size - begin - len(samples))),
                start=begin // types.FRAME_SAMPLES,
                end=-(-(begin + len(samples)) // types.FRAME_SAMPLES),
                asked=asked.asked,
                scan=scene.scan,
            )
            for asked, scene, voice, begin, samples in drawn
        ]

    def is_correct(self, question: DigitsQuestion, answer: str) -> bool:
        """As `talk.score`."""
        return talk.score(question.kind, question.asked, question.truth, answer)

    chance = staticmethod(talk.chance)
