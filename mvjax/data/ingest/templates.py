"""Turns captions and question/answer pairs into transcripts of one question and one answer.

A record has one question, also where an image has several: rows then resemble the evaluation, no pair is cut
off at the end of a row, and the image is stored once anyway. Questions and answers keep their spelling, so
that exact-match scores are comparable with other work; captions get a capital and a full stop. The request
is a pure function of the record's id. The requests are ours: the paper says only that the user asks what is
visible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mvjax.data.records import dataset

CAPTION_REQUESTS = (
    "What do you see?", "What can you see in the image?", "What is in this picture?",
    "Can you tell me what this shows?", "Describe the image, please.",
    "Could you describe this picture for me?", "What's going on here?", "What am I looking at?",
    "Tell me about this image.", "How would you describe this?", "What does the picture show?",
    "What is happening in the photo?", "Please tell me what is in front of you.",
    "Can you give me an idea of what is in this image?", "I can't see the picture. What's in it?",
    "What would you say this is a picture of?",
)  # fmt: skip
TEXT_REQUESTS = (
    "What does the text say?", "What is written here?", "Can you read this to me?",
    "Please read out the text in the image.", "Which words can you see?", "What does it say?",
    "Could you read what is written in the picture?", "Tell me what the writing says.",
)  # fmt: skip


def caption(name: str, text: str) -> tuple[dataset.Turn, ...]:
    """A request to describe, and the caption; `name` is the record's id."""
    text = tidy(text)
    ended = text if not text or text[-1] in ".!?\"'”’" else f"{text}."
    return question(_choose(CAPTION_REQUESTS, name), ended[:1].upper() + ended[1:])


def rendered_text(name: str, lines: Sequence[str]) -> tuple[dataset.Turn, ...]:
    """A request to read, and the lines of text; `name` is the record's id."""
    return question(_choose(TEXT_REQUESTS, name), " ".join(lines))


def question(asked: str, answer: str) -> tuple[dataset.Turn, ...]:
    """A question and its answer."""
    return dataset.Turn("user", tidy(asked)), dataset.Turn("assistant", tidy(answer))


def tidy(text: str) -> str:
    """Spaces, tabs and line breaks as single spaces, none at the ends."""
    return " ".join(text.split())


def _choose(options: Sequence[str], name: str) -> str:
    digest = hashlib.sha256(name.encode()).digest()
    return options[int.from_bytes(digest[:8], "big") % len(options)]
