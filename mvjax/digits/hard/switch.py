"""The benchmark `digits-switch`: talk that leaves the image or comes to it, as in the paper's figure 5.

    image to other   0 to 10 exchanges about the image, then a question that has nothing to do with it and
                     that the blind model can answer, with the image still in view; mode "blind" asks the
                     same without the image, so its score is what the image can cost
    other to image   0 to 10 exchanges of unrelated talk, then a question about the image

Conversation n asks the same after any number of exchanges, which are the last of the same ten.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mvjax import types
from mvjax.digits import talk as easy_talk
from mvjax.digits import voices
from mvjax.digits.hard import benchmark, talk
from mvjax.eval import benchmarks

TURNS = (0, 1, 2, 3, 5, 7, 10)  # exchanges before the question
DIRECTIONS = {
    "other": "image to other",
    "image": "other to image",
}  # by the scored question's topic
_EACH = 24  # conversations of each kind without a limit
_KINDS = tuple((topic, turns) for topic in DIRECTIONS for turns in TURNS)


class DigitsSwitchBenchmark(benchmarks.Benchmark):
    """The kinds are "other after 3", "image after 3" and so on; `truth` is a right answer or a question."""

    name = "digits-switch"
    modes = ("text", "blind", "audio")
    overall = "kinds"
    protocol = benchmark.HardDigitsBenchmark.protocol

    def samples(self, limit: int | None, seed: int) -> list[benchmarks.Sample]:
        """Draws conversations, kinds in turn; without a limit 24 of each kind."""
        count = _EACH * len(_KINDS) if limit is None else limit
        return [_sample(*_KINDS[i % len(_KINDS)], seed, i // len(_KINDS)) for i in range(count)]

    def score(self, sample: Any, said: str) -> float:
        """1 if an answer about the image is right by `talk.score`, or the other one is word for word."""
        if isinstance(sample.truth, str):
            return float(said.split() == sample.truth.split())
        return float(talk.score(sample.truth, said))

    def chance(self, kind: str) -> float | None:
        """Of questions about the image, as `talk.chance`; other questions need no image."""
        if kind.startswith("other"):
            return None
        return float(np.mean([talk.chance(kind) for kind in talk.KINDS]))

    def columns(self, kind: str) -> dict[str, Any]:
        """The direction, and the number of exchanges before the question."""
        topic, _, turns = kind.split()
        return {"direction": DIRECTIONS[topic], "turns": int(turns)}


def _sample(topic: str, turns: int, seed: int, n: int) -> benchmarks.Sample:
    """Conversation n after `turns` exchanges."""
    rng = np.random.default_rng([seed, list(DIRECTIONS).index(topic), n])
    kind = talk.KINDS[n % len(talk.KINDS)]
    scene = talk.scene(kind, "test", seed, n)
    voice = voices.TEST_USERS[n % len(voices.TEST_USERS)]
    truth: Any
    if topic == "other":
        prompt, truth = easy_talk.small_exchange(rng, chat=False)
        kinds = [easy_talk.pick(rng, talk.possible(scene.facts)) for _ in range(max(TURNS))]
        before = [benchmark.about_image(kind, scene.facts, rng, voice) for kind in kinds]
    else:
        truth = talk.ask(kind, scene.facts, rng)
        prompt = truth.text
        before = [benchmark.off_topic(rng, voice) for _ in range(max(TURNS))]
    late = int(rng.integers(types.FRAME_SAMPLES))
    return benchmarks.Sample(
        id=f"{topic}-{scene.id}-{turns}",
        kind=f"{topic} after {turns}",
        prompt=prompt,
        truth=truth,
        image=functools.partial(benchmark.image, kind, seed, n),
        shows=benchmark.shows(scene.facts),
        speech=functools.partial(benchmark.spoken, prompt, voice, late),
        topic="image" if topic == "image" else "off-topic",
        before=tuple(before[len(before) - turns :]),
    )
