"""The benchmark `digits-hard`: questions about several held-out digits, in writing and in held-out voices.

Its kinds are those of `talk`, and "return": talk that counts the digits, leaves the image for two exchanges,
and comes back to the white digit. None of what is said before tells the answer.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mvjax import types
from mvjax.dialogues import speech
from mvjax.digits import talk as easy_talk
from mvjax.digits import voices
from mvjax.digits.hard import talk, world
from mvjax.eval import benchmarks

RETURN = "return"
KINDS = (*talk.KINDS, RETURN)
_EACH = 48  # questions of each kind without a limit
_AWAY = 2  # exchanges that have nothing to do with the image, before the return


class HardDigitsBenchmark(benchmarks.Benchmark):
    """The kinds are KINDS; `truth` is a `talk.HardQuestion`."""

    name = "digits-hard"
    modes = benchmarks.MODES
    overall = "kinds"
    protocol = benchmarks.PromptProtocol(
        lead_in=0.32, tail=4.0, answer_from="question start", max_tokens=24
    )

    def samples(self, limit: int | None, seed: int) -> list[benchmarks.Sample]:
        """Draws questions, one image each, kinds and voices in turn; without a limit 48 of each kind."""
        count = _EACH * len(KINDS) if limit is None else limit
        return [_sample(seed, i) for i in range(count)]

    def score(self, sample: Any, said: str) -> float:
        """As `talk.score`."""
        return float(talk.score(sample.truth, said))

    def chance(self, kind: str) -> float:
        """As `talk.chance`."""
        if kind == RETURN:
            return float(np.mean([talk.chance(kind) for kind in ("digit", "place")]))
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


def exchange(
    topic: benchmarks.Topic, question: str, answer: str, voice: speech.Voice
) -> benchmarks.Exchange:
    """A question in a voice, and the answer that the assistant is made to give."""
    return benchmarks.Exchange(
        topic=topic,
        question=question,
        answer=answer,
        speech=functools.partial(spoken, question, voice, 0),
        answer_speech=functools.partial(_answered, answer),
    )


def about_image(
    kind: talk.Kind, facts: world.Facts, rng: np.random.Generator, voice: speech.Voice
) -> benchmarks.Exchange:
    """An exchange about the image."""
    asked, answered = talk.exchange(kind, facts, rng)
    return exchange("image", asked.text, answered.text, voice)


def off_topic(rng: np.random.Generator, voice: speech.Voice) -> benchmarks.Exchange:
    """An exchange that has nothing to do with the image."""
    return exchange("off-topic", *easy_talk.small_exchange(rng), voice)


def _answered(text: str) -> benchmarks.SpokenAnswer:
    said = speech.speak(text, voices.ASSISTANT)
    return benchmarks.SpokenAnswer(said.samples, said.words)


def _sample(seed: int, i: int) -> benchmarks.Sample:
    name = KINDS[i % len(KINDS)]
    voice = voices.TEST_USERS[(i // len(KINDS)) % len(voices.TEST_USERS)]
    rng = np.random.default_rng([seed, i])
    kind: talk.Kind = easy_talk.pick(rng, ("digit", "place")) if name == RETURN else name
    scene = talk.scene(kind, "test", seed, i)
    asked = talk.ask(kind, scene.facts, rng)
    before = []
    if name == RETURN:
        before = [about_image("count", scene.facts, rng, voice)]
        before += [off_topic(rng, voice) for _ in range(_AWAY)]
    late = int(rng.integers(types.FRAME_SAMPLES))
    return benchmarks.Sample(
        id=f"{name}-{scene.id}",
        kind=name,
        prompt=asked.text,
        truth=asked,
        image=functools.partial(image, kind, seed, i),
        shows=shows(scene.facts),
        speech=functools.partial(spoken, asked.text, voice, late),
        before=tuple(before),
    )
