"""Timing of a conversation from its two channels: who answers, takes over, stops, overlaps, greets.

Every measure is a function of spans of speech (seconds) alone; docs/evaluation.md has them as formulas.
Sources: Full-Duplex-Bench v1 (arXiv 2503.04721: take-over rate, response latency) and v1.5 (2507.23159: stop
latency, spans joined over short gaps). Differs: latencies may be negative, a median stands for the mean, and
every stop has its control, the same conversation in which the user does not interrupt.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from mvjax.eval.health import activity

Span = activity.Span
Kind = Literal["question", "pause", "interruption"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_USER_GAP, _ASSISTANT_GAP = 0.6, 0.5  # seconds, as in v1.5: shorter gaps do not end an utterance
_LONGEST_PAUSE = 3.0  # seconds: what is longer ends a turn, also of kind "pause"
_TAKEOVER_SECONDS, _TAKEOVER_WORDS = 1.0, 3  # as in v1: less of both is a backchannel
_SPEAKING = 0.2  # seconds that the assistant has spoken when the user interrupts it
_GIVES_WAY = 0.25  # seconds that it stops before it would have
_OPENING = 1.0  # seconds of silence at the start that leave room for a greeting


@dataclasses.dataclass(frozen=True)
class Channels:
    """One conversation: its kind, length, and when each side speaks.

    Kind "pause" is a user who pauses within a turn: utterances with 0.6 to 3 s between them are one turn.
    In the other kinds each utterance is a turn of its own.
    """

    kind: Kind
    seconds: float
    user: tuple[Span, ...]
    assistant: tuple[Span, ...]
    words: tuple[float, ...] = ()  # seconds at which the assistant wrote a word

    @property
    def utterances(self) -> list[Span]:
        """The user's speech, joined over gaps that are no pause."""
        return activity.joined(self.user, _USER_GAP)

    @property
    def replies(self) -> list[Span]:
        """The assistant's speech, joined over gaps that are no pause."""
        return activity.joined(self.assistant, _ASSISTANT_GAP)


class Interruption(NamedTuple):
    """The user begins while the assistant speaks: when, and at which second the assistant stops."""

    at: float
    stops: float


def turns(channels: Channels) -> list[list[Span]]:
    """Returns the user's turns, each as its utterances."""
    found: list[list[Span]] = []
    for utterance in channels.utterances:
        within = channels.kind == "pause" and found
        if within and utterance[0] - found[-1][-1][1] <= _LONGEST_PAUSE:
            found[-1].append(utterance)
        else:
            found.append([utterance])
    return found


def responses(channels: Channels) -> list[float | None]:
    """Returns the time to respond after each turn in seconds; None where there is no answer.

    It is the onset of the first reply that begins after the turn's last utterance began, lasts beyond it and
    begins before the next turn, less the end of that utterance: negative if the assistant is early.
    """
    asked = [turn[-1] for turn in turns(channels)]
    limits = [turn[0][0] for turn in turns(channels)[1:]] + [channels.seconds]
    return [
        next((a - end for a, b in channels.replies if begin < a < limit and b > end), None)
        for (begin, end), limit in zip(asked, limits, strict=True)
    ]


def takeovers(channels: Channels) -> list[bool]:
    """Returns of each pause within a turn whether the assistant takes over in it.

    It does if a reply that begins after the utterance before the pause began, and before the pause ends,
    reaches into the pause and lasts at least 1 s or more than 3 words.
    """
    taken = []
    for turn in turns(channels):
        for (begin, end), (goes_on, _) in itertools.pairwise(turn):
            inside = [r for r in channels.replies if begin < r[0] < goes_on and r[1] > end]
            taken.append(any(_is_takeover(channels, reply) for reply in inside))
    return taken


def interruptions(channels: Channels) -> list[Interruption]:
    """Returns where the user begins to speak while the assistant has spoken for 0.2 s and speaks on."""
    return [
        Interruption(start, b)
        for start, _ in channels.utterances
        for a, b in channels.replies
        if a + _SPEAKING <= start < b
    ]


def reply_end(channels: Channels, at: float) -> float:
    """Returns when the reply ends that goes on at a second; `at` itself if there is none."""
    return next((b for a, b in channels.replies if a <= at < b), at)


def opening(channels: Channels) -> float | Literal[False] | None:
    """Returns when the assistant greets before the user speaks; False if not, None if there is no room."""
    first = channels.user[0][0] if channels.user else channels.seconds
    if first < _OPENING:
        return None
    return next((a for a, _ in channels.replies if a < first), False)


def summary(
    conversations: Sequence[Channels], undisturbed: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Returns all measures over conversations, as JSON values.

    `undisturbed` has for each conversation, and each of its `interruptions`, when the assistant stops if the
    user does not interrupt. Shares are given as [how many, of how many]; medians are None without a case.
    """
    answered = [r for c in conversations for r in responses(c)]
    times = [r for r in answered if r is not None]
    taken = [t for c in conversations for t in takeovers(c)]
    stopped = [
        (i.stops - i.at, free - i.at)
        for c, frees in zip(conversations, undisturbed, strict=True)
        for i, free in zip(interruptions(c), frees, strict=True)
    ]
    openings = [o for o in map(opening, conversations) if o is not None]
    greetings = [float(o) for o in openings if o is not False]
    total = sum(c.seconds for c in conversations)
    both = sum(_overlap(c.user, c.assistant) for c in conversations)
    user, assistant = (
        sum(_length(side) for side in sides)
        for sides in ([c.user for c in conversations], [c.assistant for c in conversations])
    )
    return {
        "conversations": len(conversations),
        "seconds": round(total, 2),
        "answered": [len(times), len(answered)],
        "response_seconds": _median(times),
        "response_seconds_p90": _quantile(times, 0.9),
        "taken_over": [sum(taken), len(taken)],
        "gave_way": [sum(free - stop >= _GIVES_WAY for stop, free in stopped), len(stopped)],
        "stop_seconds": _median([stop for stop, _ in stopped]),
        "undisturbed_seconds": _median([free for _, free in stopped]),
        "greeted": [len(greetings), len(openings)],
        "greeting_seconds": _median(greetings),
        "overlap": round(both / total, 4),
        "silence": round(1 - (user + assistant - both) / total, 4),
        "assistant": round(assistant / total, 4),
    }


def _is_takeover(channels: Channels, reply: Span) -> bool:
    start, end = reply
    words = sum(
        start - _SPEAKING <= at < end for at in channels.words
    )  # text leads speech a little
    return end - start >= _TAKEOVER_SECONDS or words > _TAKEOVER_WORDS


def _length(speech: Sequence[Span]) -> float:
    return sum((b - a for a, b in speech), 0.0)


def _overlap(some: Sequence[Span], others: Sequence[Span]) -> float:
    """Seconds in which both speak."""
    return sum((max(0.0, min(b, d) - max(a, c)) for a, b in some for c, d in others), 0.0)


def _median(values: Sequence[float]) -> float | None:
    return _quantile(values, 0.5)


def _quantile(values: Sequence[float], q: float) -> float | None:
    return round(float(np.quantile(values, q)), 3) if values else None
