"""The benchmark `digits-hard`: questions about several held-out digits, in writing and in held-out voices."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mvjax import types
from mvjax.dialogues import speech
from mvjax.digits import voices
from mvjax.digits.hard import talk, world
from mvjax.eval import benchmarks

_EACH = 48  # questions of each kind without a limit


class HardDigitsBenchmark(benchmarks.Benchmark):
    """The kinds are `talk.KINDS`; `truth` is a `talk.HardQuestion`."""

    name = "digits-hard"
    modes = benchmarks.MODES
    overall = "kinds"
    protocol = benchmarks.PromptProtocol(
        lead_in=0.32, tail=4.0, answer_from="question start", max_tokens=24
    )

    def samples(self, limit: int | None, seed: int) -> list[benchmarks.Sample]:
        """Draws questions, one image each, kinds and voices in turn; without a limit 48 of each kind."""
        count = _EACH * len(talk.KINDS) if limit is None else limit
        return [_sample(seed, i) for i in range(count)]

    def score(self, sample: Any, said: str) -> float:
        """As `talk.score`."""
        return float(talk.score(sample.truth, said))

    def chance(self, kind: str) -> float:
        """As `talk.chance`."""
        return talk.chance(kind)


def spoken(text: str, voice: speech.Voice, late: int) -> np.ndarray:
    """A question, `late` samples after the start of a frame."""
    return np.pad(speech.speak(text, voice).samples, (late, 0))


def image(kind: talk.Kind, seed: int, i: int) -> np.ndarray:
    """The image of a test scene."""
    return talk.scene(kind, "test", seed, i).image


def shows(facts: world.Facts) -> str:
    """What an image shows, in words."""
    return ", ".join(f"{x.place}: {x.colour} {talk.value(x, 'digit')}" for x in facts.items)


def _sample(seed: int, i: int) -> benchmarks.Sample:
    kind = talk.KINDS[i % len(talk.KINDS)]
    voice = voices.TEST_USERS[(i // len(talk.KINDS)) % len(voices.TEST_USERS)]
    scene = talk.scene(kind, "test", seed, i)
    rng = np.random.default_rng([seed, i])
    asked = talk.ask(kind, scene.facts, rng)
    late = int(rng.integers(types.FRAME_SAMPLES))
    return benchmarks.Sample(
        id=f"{kind}-{scene.id}",
        kind=kind,
        prompt=asked.text,
        truth=asked,
        image=functools.partial(image, kind, seed, i),
        shows=shows(scene.facts),
        speech=functools.partial(spoken, asked.text, voice, late),
    )
