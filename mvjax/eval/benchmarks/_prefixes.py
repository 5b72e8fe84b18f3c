"""Talk of 0 to 10 turns before the scored question: the two directions of context switching."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mvjax.eval import benchmarks, metrics

TURNS = (0, 1, 2, 3, 5, 10)  # as in the paper's Figure 5


def kind(turns: int) -> str:
    """The kind of samples that come after so many question-answer turns."""
    return f"after {turns}"


def columns(kind: str, direction: Literal["image to other", "other to image"]) -> dict[str, Any]:
    """The columns of a kind's row."""
    return {"direction": direction, "turns": int(kind.removeprefix("after "))}


def summary(scored: Sequence[metrics.ScoredAnswer], *, at_most_one: bool = True) -> metrics.Summary:
    """Means of each kind, and theirs; the interval is over questions, each asked after every prefix."""
    asked: dict[str, list[float]] = {}
    for answer in scored:
        assert answer.score is not None
        asked.setdefault(answer.id.rpartition("-after-")[0], []).append(answer.score)
    means = [
        metrics.ScoredAnswer(name, "question", "", "", float(np.mean(scores)))
        for name, scores in asked.items()
    ]
    interval = metrics.summary(means, at_most_one=at_most_one).interval
    by_kind = metrics.summary(scored, overall="kinds", at_most_one=at_most_one)
    return by_kind._replace(interval=interval)


def questions(limit: int | None) -> int | None:
    """How many questions are drawn for a limit of samples: each is asked after every prefix."""
    return None if limit is None else max(1, limit // len(TURNS))


def draw(name: str, count: int) -> int:
    """One of `count`, by the hash of a question's id: the same in every run and for every limit."""
    return zlib.crc32(name.encode()) % count


# Ours. No answer depends on an image.
_SMALL_TALK = (
    ("How are you today?", "I'm doing well, thank you. How are you?"),
    ("What is your favorite season?", "I like autumn best, when the air is crisp."),
    (
        "Do you know any good recipes for soup?",
        "Try onions, carrots and lentils with a little cumin.",
    ),
    ("How many days does a leap year have?", "A leap year has three hundred and sixty-six days."),
    ("Who wrote Hamlet?", "Hamlet was written by William Shakespeare."),
    ("Can you recommend a way to fall asleep?", "A short walk in the evening often helps."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("I have to give a talk tomorrow.", "You will do fine. Speak slowly and look at your friends."),
    ("Why is the sea salty?", "Rivers wash minerals from the rocks into it."),
    ("What instrument should I learn?", "The ukulele is small, cheap and easy to start with."),
    ("How far away is the moon?", "It is about three hundred and eighty thousand kilometers away."),
    ("My neighbor is very loud.", "Maybe a friendly word over coffee would help."),
    ("What is seven times eight?", "Seven times eight is fifty-six."),
    ("Do you prefer tea or coffee?", "I would choose tea, with a slice of lemon."),
    ("How do bees find their way home?", "They steer by the sun and by what they remember."),
    ("What should I read next?", "How about a collection of short stories?"),
    ("When was the first moon landing?", "It was in July of nineteen sixty-nine."),
    ("I'm learning to swim.", "That's great. Practice breathing out under water."),
    ("How long should I boil an egg?", "Six minutes for a soft one, ten for a hard one."),
    ("What makes a good friend?", "Someone who listens, and who tells you the truth."),
)


def small_talk(name: str, turns: int) -> list[benchmarks.Exchange]:
    """Turns that have nothing to do with an image, in an order that the id of the question draws."""
    order = np.random.default_rng(zlib.crc32(name.encode())).permutation(len(_SMALL_TALK))
    return [benchmarks.Exchange("off-topic", *_SMALL_TALK[n]) for n in order[:turns]]


def image_talk(pairs: Sequence[tuple[str, str]], turns: int) -> list[benchmarks.Exchange]:
    """Turns about the image."""
    return [benchmarks.Exchange("image", question, answer) for question, answer in pairs[:turns]]
