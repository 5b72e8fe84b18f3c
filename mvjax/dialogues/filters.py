"""Filters for utterances and dialogues; each returns the reason for rejection, which is counted.

Thresholds are ours. A rejected utterance is requested again; a rejected dialogue is retried, then dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mvjax.data.records import dataset
from mvjax.dialogues import cleanup

FEWEST_TURNS = 8  # the paper's dialogues have 8 to 16 utterances
MOST_WORDS = {"user": 60, "assistant": 120}  # in an utterance: 20 and 45 seconds
QUOTED = 10  # words in a row of the caption that a user cannot know
_ALIKE = 0.9  # share of words in common with something the speaker has said
_ASKING = 0.5  # share of the user's utterances that ask

EMPTY = "says nothing"
TOO_LONG = "too long"
CUT_OFF = "cut off"
REPEATS = "repeats"
LEAKS = "mentions notes or instructions"
QUOTES = "user quotes the caption"
ROLE = "mentions a role"
REFUSES = "refuses"
UNSPEAKABLE = "cannot be spoken"
NO_QUESTIONS = "user hardly asks"
TOO_FEW = "too few turns"

_LEAK = re.compile(
    r"\b(?:captions?|(?:my|your|the) (?:notes|instructions?|prompt)|system prompt|"
    r"(?:the|this|that|your|given|provided|original) descriptions?|"
    r"based on (?:the|what i) (?:read|text|information)|"
    r"i (?:was|am|have been) (?:told|given|provided|instructed)|according to the (?:text|information)|"
    r"not (?:mentioned|specified)|as (?:mentioned|described|stated))\b",
    re.I,
)
_ROLE = re.compile(
    r"\b(?:as an? (?:ai|assistant|language model)|language model|the (?:user|assistant|other speaker)|"
    r"speaker (?:one|two|a|b)|role[- ]?play\w*|my role)\b",
    re.I,
)
_REFUSAL = re.compile(
    r"\bi(?:'m| am) (?:sorry|afraid),? (?:but )?i (?:can't|cannot|am unable to|won't) "
    r"(?:help|assist|do|continue|comply|provide|discuss|answer|engage)|"
    r"\bi (?:can't|cannot|won't) (?:assist|comply|fulfil\w*|engage|continue with)\b|"
    r"\b(?:unable|not able) to (?:view|see|process|display) images\b",
    re.I,
)
_LINK = re.compile(r"https?:|www\.|\.(?:com|org|net)\b|\w+\(\)|[{}<>\\^]", re.I)
_MARKS = set(" '.,!?-")


def utterance(text: str, turns: Sequence[dataset.Turn], *, caption: str, cut: bool) -> str | None:
    """Why the next utterance is rejected; None if it is accepted.

    `text` is cleaned; `turns` are the dialogue so far, the user begins; `caption` may be empty; `cut`: the
    answer was cut off before its first sentence ended.
    """
    speaker = "assistant" if len(turns) % 2 else "user"
    said = cleanup.words(text)
    if cut:
        return CUT_OFF
    if not said:
        return EMPTY
    if len(said) > MOST_WORDS[speaker]:
        return TOO_LONG
    if _LINK.search(text) or not all(c in _MARKS or _latin(c) for c in text):
        return UNSPEAKABLE
    for pattern, reason in ((_REFUSAL, REFUSES), (_ROLE, ROLE), (_LEAK, LEAKS)):
        if pattern.search(text):
            return reason
    if speaker == "user" and _longest_quotation(said, cleanup.words(caption)) >= QUOTED:
        return QUOTES
    return REPEATS if _repeats(said, speaker, turns) else None


def dialogue(turns: Sequence[dataset.Turn], *, pictured: bool) -> str | None:
    """Why a dialogue is rejected; None if it is accepted."""
    if len(turns) < FEWEST_TURNS:
        return TOO_FEW
    asked = [("?" in turn.text or _ASKS.match(turn.text)) for turn in turns[::2]]
    if pictured and sum(map(bool, asked)) < _ASKING * len(asked):
        return NO_QUESTIONS
    return None


_ASKS = re.compile(
    r"(?:so |and |but |okay )?(?:what|which|where|who|whose|why|when|how|is|are|was|do|does|did|can|could|"
    r"would|tell|describe|name|show|explain|any)\b",
    re.I,
)  # questions of those who write no question mark


def _latin(c: str) -> bool:
    return c.isalpha() and unicodedata.name(c, "").startswith("LATIN")


def _repeats(said: list[str], speaker: str, turns: Sequence[dataset.Turn]) -> bool:
    """Whether the speaker said about the same before (short answers may), or the other one just now."""
    for n, turn in enumerate(turns):
        before = cleanup.words(turn.text)
        if n == len(turns) - 1 and turn.speaker != speaker and before == said and len(said) > 1:
            return True
        alike = len({*before} & {*said}) / len({*before} | {*said})
        if turn.speaker == speaker and len(said) > 5 and alike >= _ALIKE:
            return True
        if turn.speaker == speaker == "user" and before == said:
            return True
    return False


def _longest_quotation(said: list[str], caption: list[str]) -> int:
    """The most words in a row that are in both."""
    longest = 0
    row = [0] * (len(caption) + 1)
    for word in said:
        row = [0, *(row[i] + 1 if word == c else 0 for i, c in enumerate(caption))]
        longest = max(longest, *row)
    return longest
