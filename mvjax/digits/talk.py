"""Dialogues of the digits world as text: drawn from a numpy Generator, and scored.

Words are lower case, without punctuation, from a closed vocabulary (`vocabulary()`).

    visual_dialogue   about a picture whose facts are given
    blind_dialogue    the same with facts drawn at random: nobody can know the answers
    told_dialogue     the user first says what is in the picture
    small_talk        unrelated to any picture
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from mvjax.data.records import record
from mvjax.digits import wordings, world

Kind = Literal["digit", "colour", "place", "describe", "misleading", "yesno"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SMALL_TALK = "small_talk"
VALUES = {"digit": world.DIGITS, "colour": tuple(world.COLOURS), "place": tuple(world.PLACES)}
ATTRIBUTES = tuple(VALUES)
_GAMES = 0.8  # share of small talk that is no chat


@dataclasses.dataclass(frozen=True)
class DigitsDialogue:
    """Turns of two speakers in time order; the user asks, and either may begin."""

    id: str
    kinds: tuple[str, ...]  # a question kind, or "small_talk", for each question of the user
    turns: tuple[record.Turn, ...]
    facts: world.Facts | None  # what the picture shows, if there is one


@dataclasses.dataclass(frozen=True)
class WordedQuestion:
    """A question about a picture."""

    kind: Kind
    asked: str  # the value a yesno or misleading question names ("seven", "top left"), else ""
    text: str


def random_facts(rng: np.random.Generator) -> world.Facts:
    """Facts drawn uniformly."""
    digit = int(rng.integers(10))
    return world.Facts(digit, pick(rng, VALUES["colour"]), pick(rng, VALUES["place"]))


def truth(facts: world.Facts, attribute: str) -> str:
    """The word or words for an attribute: "seven", "red", "top left"."""
    return world.DIGITS[facts.digit] if attribute == "digit" else getattr(facts, attribute)


def ask(kind: Kind, facts: world.Facts, rng: np.random.Generator) -> WordedQuestion:
    """Draws a wording, and the asked value of yesno (true half the time) and misleading (false)."""
    if kind in wordings.QUESTIONS:
        return WordedQuestion(kind, "", pick(rng, wordings.QUESTIONS[kind]))
    attribute = pick(rng, ATTRIBUTES)
    right = truth(facts, attribute)
    asked = pick(rng, [value for value in VALUES[attribute] if value != right])
    if kind == "yesno" and rng.random() < 0.5:
        asked = right
    table = wordings.YESNO if kind == "yesno" else wordings.MISLEADING
    return WordedQuestion(kind, asked, pick(rng, table[attribute]).format(A=in_sentence(asked)))


def answer(question: WordedQuestion, facts: world.Facts, rng: np.random.Generator) -> str:
    """A correct answer, in one of the wordings of its kind."""
    form: str = question.kind
    attribute = attribute_of(question.asked) if question.asked else form
    right = "" if form == "describe" else truth(facts, attribute)
    if form == "yesno":
        form = "yes" if question.asked == right else "no"
    return pick(rng, wordings.ANSWERS[form]).format(
        name=right, scene=_scene(facts), X=in_sentence(question.asked), Y=in_sentence(right)
    )


def visual_dialogue(
    facts: world.Facts,
    rng: np.random.Generator,
    *,
    turns: int | None = None,
    kinds: Sequence[Kind] | None = None,
    name: str = "visual",
) -> DigitsDialogue:
    """Questions of different kinds and correct answers; the assistant greets first at times.

    `turns` counts question-answer pairs, at most 6 (drawn from 1..3 if None); `kinds` names
    them, in order, instead.
    """
    if kinds is None:
        kinds = _draw_kinds(rng, int(rng.integers(1, 4)) if turns is None else turns)
    said = []
    if rng.random() < 0.3:
        said.append(record.Turn("assistant", pick(rng, wordings.GREETINGS)))
    return DigitsDialogue(name, tuple(kinds), (*said, *_exchanges(kinds, facts, rng)), facts)


def blind_dialogue(rng: np.random.Generator) -> DigitsDialogue:
    """A visual dialogue without a picture: its facts are random and never told."""
    return dataclasses.replace(visual_dialogue(random_facts(rng), rng, name="blind"), facts=None)


def told_dialogue(rng: np.random.Generator) -> DigitsDialogue:
    """The user says what the picture shows, then asks; every answer follows from what was told."""
    facts = random_facts(rng)
    kinds = _draw_kinds(rng, int(rng.integers(1, 4)))
    told = record.Turn("user", pick(rng, wordings.TOLD).format(scene=_scene(facts)))
    okay = record.Turn("assistant", pick(rng, wordings.ACKNOWLEDGE))
    return DigitsDialogue("told", kinds, (told, okay, *_exchanges(kinds, facts, rng)), None)


def small_talk(
    rng: np.random.Generator, *, turns: int | None = None, name: str = SMALL_TALK
) -> DigitsDialogue:
    """Talk without a picture, half of it the echo game; `turns` as for `visual_dialogue`."""
    n = int(rng.integers(1, 4)) if turns is None else turns
    said = []
    for _ in range(n):
        question, reply = small_exchange(rng)
        said += [record.Turn("user", question), record.Turn("assistant", reply)]
    return DigitsDialogue(name, (SMALL_TALK,) * n, tuple(said), None)


def score(kind: str, asked: str, facts: world.Facts, answer_text: str) -> bool:
    """Whether an answer is right and says nothing wrong.

    The true value of the attribute in question must be said, and no other value of any attribute
    except the asked one after "not". `describe` needs all three values. `misleading` needs "not
    <asked>" as well as the truth. `yesno` needs the right one of "yes" and "no", once, and not the
    other; with "yes" the asked value, with "no" its denial or the true value.
    """
    words = answer_text.split()
    said, denied = mentions(words)
    truths = {truth(facts, attribute) for attribute in ATTRIBUTES}
    if not said <= truths or not denied <= {asked} - truths:
        return False
    if kind == "describe":
        return said == truths
    if kind in ATTRIBUTES:
        return truth(facts, kind) in said
    right = truth(facts, attribute_of(asked))
    if kind == "misleading":
        return denied == {asked} and right in said
    verdict = [word for word in words if word in ("yes", "no")]
    if asked == right:
        return verdict == ["yes"] and asked in said
    return verdict == ["no"] and (asked in denied or right in said)


def chance(kind: str) -> float:
    """The best a guesser can expect who hears the question and does not see the picture."""
    if kind == "yesno":
        return 0.5
    sizes = {attribute: len(values) for attribute, values in VALUES.items()}
    if kind == "describe":
        return 1 / math.prod(sizes.values())
    if kind == "misleading":  # one value is ruled out by the question
        return float(np.mean([1 / (size - 1) for size in sizes.values()]))
    return 1 / sizes[kind]


def vocabulary() -> list[str]:
    """Every word a dialogue can contain, sorted."""
    texts = [*itertools.chain(*VALUES.values()), *wordings.DAYS, "a", "an", "at", "in", "the"]
    texts += itertools.chain(*wordings.OPPOSITES, wordings.GREETINGS, wordings.TOLD)
    texts += itertools.chain(wordings.ACKNOWLEDGE, wordings.ECHO, wordings.COUNT_ON)
    texts += itertools.chain(wordings.COUNT_BACK, wordings.OPPOSITE_QUESTIONS, wordings.NEXT_DAY)
    for table in (wordings.QUESTIONS, wordings.YESNO, wordings.MISLEADING, wordings.ANSWERS):
        texts += itertools.chain(*table.values())
    for questions, replies in wordings.CHAT:
        texts += [*questions, *replies]
    texts += ["comes", "after", "before", "opposite", "of", "is"]
    return sorted({word for text in texts for word in text.split() if "{" not in word})


def _draw_kinds(rng: np.random.Generator, count: int) -> tuple[Kind, ...]:
    return tuple(KINDS[i] for i in rng.permutation(len(KINDS))[:count])


def _exchanges(
    kinds: Sequence[Kind], facts: world.Facts, rng: np.random.Generator
) -> list[record.Turn]:
    said = []
    for kind in kinds:
        question = ask(kind, facts, rng)
        reply = answer(question, facts, rng)
        said += [record.Turn("user", question.text), record.Turn("assistant", reply)]
    return said


def small_exchange(rng: np.random.Generator, *, chat: bool = True) -> tuple[str, str]:
    """A question that needs no picture, and an answer; half of them are the echo game.

    Without `chat` every question has one answer.
    """
    game = rng.random() * (1.0 if chat else _GAMES)
    if game < 0.5:
        attributes = rng.integers(len(ATTRIBUTES), size=int(rng.integers(1, 4)))
        words = " ".join(pick(rng, VALUES[ATTRIBUTES[a]]) for a in attributes)
        return pick(rng, wordings.ECHO).format(words=words), words
    if game < 0.65:
        i = int(rng.integers(len(world.DIGITS) - 1))
        a, b, table, way = world.DIGITS[i], world.DIGITS[i + 1], wordings.COUNT_ON, "after"
        if rng.random() < 0.5:
            a, b, table, way = b, a, wordings.COUNT_BACK, "before"
        return pick(rng, table).format(a=a), f"{b} comes {way} {a}"
    if game < 0.72:
        a, b = pick(rng, wordings.OPPOSITES)
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        question = pick(rng, wordings.OPPOSITE_QUESTIONS).format(a=a)
        return question, f"the opposite of {a} is {b}"
    if game < _GAMES:
        i = int(rng.integers(len(wordings.DAYS)))
        a, b = wordings.DAYS[i], wordings.DAYS[(i + 1) % len(wordings.DAYS)]
        return pick(rng, wordings.NEXT_DAY).format(a=a), f"{b} comes after {a}"
    questions, replies = pick(rng, wordings.CHAT)
    return pick(rng, questions), pick(rng, replies)


def pick(rng: np.random.Generator, items: Sequence):
    """Draws one of the items."""
    return items[int(rng.integers(len(items)))]


def in_sentence(value: str) -> str:
    """A value as it is said in a sentence: "a seven", "red", "at the top left"."""
    if value in VALUES["digit"]:
        return f"an {value}" if value == "eight" else f"a {value}"
    if value in VALUES["place"]:
        return f"in the {value}" if value == "middle" else f"at the {value}"
    return value


def _scene(facts: world.Facts) -> str:
    return f"a {facts.colour} {world.DIGITS[facts.digit]} {in_sentence(facts.place)}"


def attribute_of(value: str) -> str:
    """The attribute that a value is of: "digit" of "seven"."""
    return next(name for name, values in VALUES.items() if value in values)


def mentions(words: Sequence[str]) -> tuple[set[str], set[str]]:
    """The attribute values in a text: (said, said after "not")."""
    said, denied = set(), set()
    for size in (1, 2):
        for i in range(len(words) - size + 1):
            value = " ".join(words[i : i + size])
            if any(value in values for values in VALUES.values()):
                before = i
                while before and words[before - 1] in ("a", "an", "at", "in", "the"):
                    before -= 1
                (denied if before and words[before - 1] == "not" else said).add(value)
    return said, denied
