"""Topics of dialogues without a picture, and moods to vary them."""

from __future__ import annotations

import numpy as np

TOPICS = (
    "what to cook tonight with very little time", "baking bread for the first time",
    "how coffee is made, from bean to cup", "a recipe that went wrong", "growing tomatoes on a balcony",
    "why leaves change color in autumn", "how bees find their way home", "looking after a young dog",
    "why cats purr", "how whales talk to each other", "where to go on a weekend trip by train",
    "packing light for a long journey", "learning to swim as an adult",
    "training for a first ten kilometer run", "how to sleep better",
    "a stiff neck from sitting all day", "cycling to work in the rain",
    "the rules of chess, explained simply", "board games for four people",
    "a film that both may have seen", "a book worth reading twice", "learning to play the guitar",
    "how an orchestra tunes", "why some songs stay in the head", "picking up a new language",
    "words that cannot be translated", "how to remember names", "getting ready for a job interview",
    "asking for a rise in pay", "how to write a short speech", "saving money on a small budget",
    "how interest on a loan works", "moving into a first flat", "fixing a dripping tap",
    "painting a room without a mess", "choosing a second-hand bicycle",
    "how a refrigerator keeps things cold", "how airplanes stay in the air", "what makes the tides",
    "why the sky is blue", "the planets of the solar system", "what a black hole is",
    "how vaccines work", "what dreams may be for", "how the heart knows when to beat",
    "a simple magic trick", "riddles for children", "a bedtime story made up on the spot",
    "the weather and what to wear", "what to give a friend for a birthday", "planning a surprise party",
    "making new friends in a new town", "settling an argument with a neighbor",
    "the first people on the moon", "how the pyramids were built", "the history of the umbrella",
    "how paper is made", "mental arithmetic tricks", "what prime numbers are good for",
    "how computers store pictures and text", "telling a real message from a fraud",
    "working from home without losing the day",
)  # fmt: skip

_MOODS = (
    "curious", "tired", "cheerful", "in a hurry", "skeptical", "thoughtful", "playful", "matter-of-fact",
)  # fmt: skip


def draw(rng: np.random.Generator) -> str:
    """Draws a topic and the user's mood."""
    topic = TOPICS[int(rng.integers(len(TOPICS)))]
    return f"{topic}. You are {_MOODS[int(rng.integers(len(_MOODS)))]} today"
