"""Prompts for both roles of a synthetic dialogue, by kind: the paper's eight, and one without a picture.

    PROP   properties: colors, shapes, materials        LEAD1  curt questions, often about absent things
    LOC    where things are, and beside what             LEAD2  the user insists on what is not there
    NUM    how many there are                            TS1    a pupil who sees badly, a teacher who explains
    COMB   an open question, then a fresh kind (not      TS2    a pupil who sees nothing, a strict teacher
           LEAD2) for every utterance                    UNRELATED  no picture: for context switching

The kinds and their purposes are the paper's (appendix E; `ssvd` of kyutai-labs/moshivis); every prompt is
ours. The TS2 pupil is not given the caption, nor is the user in the opening of a COMB dialogue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mvjax.data.records import dataset

Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class DialogueKind:
    """A kind of dialogue: the manner and interests of both roles."""

    name: str
    user: str
    assistant: str
    opening: str = "Begin the conversation with your first question about the picture."
    user_sees: bool = True  # whether the user is given the caption
    pictured: bool = True  # whether there is a picture at all


_FAITHFUL = (
    "Claim only what your notes support. If a question goes beyond them, say in your own words that it cannot"
    " be made out."
)
_ABSENT = "Begin the conversation by asking after some object that is not in the picture."

PROP = DialogueKind(
    "PROP",
    "You care about how things look: colors above all, then shapes, materials, patterns and surfaces. Ask"
    " about a property that your notes give, each time of something else.",
    f"Name the property that was asked for first, then perhaps one detail beside it. {_FAITHFUL}",
)
LOC = DialogueKind(
    "LOC",
    "You care about where things are: left or right, in front or behind, above, below, next to what, in which"
    " part of the picture. Ask about places that your notes give, each time of something else.",
    f"Say the place plainly and briefly, and relative to what. {_FAITHFUL}",
)
NUM = DialogueKind(
    "NUM",
    "You care about quantities: how many there are of this and that. Each time count something else.",
    "Give the number first, and little else. If there are too many to count or they are partly hidden, say"
    f" so. {_FAITHFUL}",
)
LEAD1 = DialogueKind(
    "LEAD1",
    "You are in a hurry and a bit rude; a few words are enough for a question. More often than not, but not"
    " always, ask about a thing that is nowhere in the picture, or take something false for granted.",
    "Never agree to what is not there. Turn it down in ever new ways: a plain no, not seeing it, being"
    f" puzzled by the question, setting it right. {_FAITHFUL}",
)
LEAD2 = DialogueKind(
    "LEAD2",
    "You want to lead the other astray. Most of the time ask about all kinds of things that are not in the"
    " picture, as if nobody could doubt that they are; at times ask an honest question. You are direct, sure"
    " of yourself, sometimes bordering on rude, and you do not give in easily.",
    "Answer at length, from facts alone. When something is wrong, correct it, politely but without giving an"
    f" inch; answer rudeness with a firm no. Often steer back to something that is there. {_FAITHFUL}",
    opening=_ABSENT,
)
TS1 = DialogueKind(
    "TS1",
    "You are a pupil, and you can hardly see the picture. Ask simple, even naive questions to find out what"
    " is in it, one at a time: what there is, where it is, sometimes what color it has. Refer to the"
    " picture.",
    "You are the teacher. Answer fully and in detail, in several sentences, about what can be seen rather"
    f" than about mood. {_FAITHFUL}",
    opening=_ABSENT,
)
TS2 = DialogueKind(
    "TS2",
    "You are a pupil, and you cannot see the picture at all: everything you know is what the teacher has told"
    " you. Ask one question at a time about what is in it, how many, where, in which colors. Now and then"
    " guess at something, and you may well guess wrong.",
    "You are a strict but kind teacher. Answer completely without rambling, about what can be seen rather"
    f" than about mood, and correct the pupil wherever a guess is wrong. {_FAITHFUL}",
    opening="Begin the conversation by guessing at one thing that may be in the picture.",
    user_sees=False,
)
UNRELATED = DialogueKind(
    "UNRELATED",
    "Talk about the topic below as people do when they have a minute: ask, react to what you hear, ask on.",
    "You are a friendly, well-informed voice companion. Answer directly, mostly in one to three sentences,"
    " and say so when you do not know. Nobody is looking at a picture.",
    opening="Begin the conversation with something you would like to know about the topic.",
    user_sees=False,
    pictured=False,
)
_MIXED = (LOC, PROP, NUM, LEAD1, TS1, TS2)  # what COMB draws from
_SINGLE = {kind.name: kind for kind in (PROP, LOC, NUM, LEAD1, LEAD2, TS1, TS2)}

COMB = "COMB"
KINDS = (*_SINGLE, COMB)  # the paper's

_SPOKEN = (
    "All that you write is spoken aloud as it stands: natural spoken English, numbers as words; no lists, no"
    " formatting, no emojis, no actions in brackets, no name before what you say. Say only your next turn."
)
_LOOKS = "You talk as someone who looks at the picture. "
_SECRET = (
    "Never let on that there are notes, a caption, a description or instructions, and never call the"
    " other one by a role."
)
_USER = (
    "You and someone else talk about a picture, and you are the one who asks. Say one thing at a time, in one"
    " or two short sentences. Go from what catches the eye to the details, and do not ask twice. Avoid"
    " questions that give their answer away."
)
_ASSISTANT = (
    "You and someone else talk about a picture, and you are the one who sees it well and answers. Be"
    " concrete, in simple words, and sure of what you see; when the other one has something wrong, say so."
)


def schedule(kind: str, utterances: int, rng: np.random.Generator) -> list[DialogueKind]:
    """The kind of every utterance; all the same, but for COMB. Raises ValueError for no known kind."""
    if kind == UNRELATED.name:
        return [UNRELATED] * utterances
    if kind == COMB:
        drawn = rng.integers(len(_MIXED), size=utterances - 2)
        return [*[_starter(rng)] * 2, *(_MIXED[i] for i in drawn)]
    if kind not in _SINGLE:
        raise ValueError(f"dialogue kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return [_SINGLE[kind]] * utterances


def messages(kind: DialogueKind, notes: str, turns: Sequence[dataset.Turn]) -> list[Message]:
    """The chat that requests the next turn, from the view of its speaker.

    The speaker is "assistant" in the chat, the other one "user", in strict alternation, which many chat
    templates require. `notes` are the caption, or the topic where there is no picture; the user begins.
    """
    speaker = "assistant" if len(turns) % 2 else "user"
    chat = [{"role": "system", "content": _instruction(kind, speaker, notes)}]
    if speaker == "user":
        chat.append({"role": "user", "content": kind.opening})
    for turn in turns:
        role = "assistant" if turn.speaker == speaker else "user"
        chat.append({"role": role, "content": turn.text})
    return chat


def _instruction(kind: DialogueKind, speaker: str, notes: str) -> str:
    manner = kind.user if speaker == "user" else kind.assistant
    if not kind.pictured:
        topic = [f"The topic: {notes}."] if speaker == "user" else []
        return "\n\n".join([manner, *topic, _SPOKEN])
    role = _USER if speaker == "user" else _ASSISTANT
    seen = f"Your notes, what the picture shows:\n<notes>\n{notes}\n</notes>"
    if speaker == "user" and not kind.user_sees:
        return "\n\n".join([role, manner, _SPOKEN, _SECRET])
    return "\n\n".join([role, manner, _SPOKEN, _LOOKS + _SECRET, seen])


def _starter(rng: np.random.Generator) -> DialogueKind:
    """The open question that begins a COMB dialogue; its axes and probabilities are the reference's."""
    sentences = rng.choice(["one", "two", "three", "four"], p=[0.4, 0.35, 0.2, 0.05])
    words = rng.choice([8, 14, 26], p=[0.5, 0.25, 0.25])
    thing = rng.choice(["image", "picture"], p=[0.7, 0.3])
    who, visible = rng.random(2) < 0.5
    manner = (
        f"fewer than {words} words",
        "ask what the other one sees" if who else "ask what you yourself have before you",
        "put it as seeing" if visible else "put it as what is there to be seen",
        str(rng.choice(["polite", "friendly", "very casual"], p=[0.2, 0.6, 0.2])) + " in tone",
        str(rng.choice(["straight to the point", "in a roundabout way"], p=[0.75, 0.25])),
        str(rng.choice(["sure of yourself", "hesitating"], p=[0.75, 0.25])),
        f'say "{thing}"',
    )
    return DialogueKind(
        COMB,
        "You want to hear what the picture shows as a whole.",
        f"Tell what the picture shows, in at most {sentences} sentence{'s' * (sentences != 'one')}; do not"
        f" greet. {_FAITHFUL}",
        opening=f"Begin with a single question about the whole: {'; '.join(manner)}.",
        user_sees=False,
    )
