"""Questions about several digits: drawn from a numpy Generator, answered and scored.

    digit       what digit is white                     the digit is seven
    place       where is the white digit                you find it at the top left
    yesno       is the white digit a four               it is a seven so no
    misleading  why is the white digit a four           it is not a four it is a seven
    refer       what colour is the two                  its colour is red
    beside      which digit is left of the seven        the number is four
    count       how many digits do you see              the number is three
    sum         what do the digits make                 the number is nine

The first four are about the white digit, which they need not look for in the question. `refer` is about
one of the others, named by a digit, a colour or a place, and asks for another of the three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from mvjax.data.records import record
from mvjax.digits import talk
from mvjax.digits import wordings as easy_wordings
from mvjax.digits import world as easy_world
from mvjax.digits.hard import wordings, world

Kind = Literal["digit", "place", "yesno", "misleading", "refer", "beside", "count", "sum"]

KINDS: tuple[Kind, ...] = get_args(Kind)
VALUES = {**talk.VALUES, "place": world.PLACES}
TOTALS = range(1, world.LARGEST_TOTAL + 1)
_SIDES = {"left": "right", "right": "left"}


@dataclasses.dataclass(frozen=True)
class HardQuestion:
    """A question about a picture, and what a right answer says."""

    kind: Kind
    text: str
    right: str  # the value that must be said
    asked: str = ""  # the value that a yesno or misleading question names, else ""
    true: frozenset[str] = frozenset()  # other values that may be said: of the digit in question


def scene(kind: Kind, split: easy_world.Split, seed: int, i: int) -> world.Scene:
    """Scene i of a split and seed for a question of a kind: sums are 1 to 9 equally often."""
    rng = np.random.default_rng([seed, i, KINDS.index(kind)])
    if kind == "sum":
        return world.scene(split, seed, i, total=int(rng.integers(TOTALS.start, TOTALS.stop)))
    if kind == "beside":
        return world.scene(split, seed, i, fits=lambda facts: bool(_neighbors(facts)))
    return world.scene(split, seed, i)


def possible(facts: world.Facts) -> tuple[Kind, ...]:
    """The kinds of question that a picture has an answer to."""
    impossible = set()
    if facts.total not in TOTALS:
        impossible.add("sum")
    if not _neighbors(facts):
        impossible.add("beside")
    return tuple(kind for kind in KINDS if kind not in impossible)


def ask(kind: Kind, facts: world.Facts, rng: np.random.Generator) -> HardQuestion:
    """Draws what is asked, and in which words; the kind must be one of the `possible` ones."""
    if kind == "count":
        return HardQuestion(kind, talk.pick(rng, wordings.COUNT), _digit(len(facts.items)))
    if kind == "sum":
        return HardQuestion(kind, talk.pick(rng, wordings.SUM), _digit(facts.total))
    if kind == "beside":
        item, side, other = talk.pick(rng, _neighbors(facts))
        refer = _refer(item, talk.pick(rng, talk.ATTRIBUTES), rng)
        text = talk.pick(rng, wordings.BESIDE).format(side=side, R=refer)
        return HardQuestion(kind, text, value(other, "digit"), true=_values(other))
    if kind == "refer":
        item = talk.pick(rng, [item for item in facts.items if item != facts.white])
        about = talk.pick(rng, talk.ATTRIBUTES)
        by = talk.pick(rng, [name for name in talk.ATTRIBUTES if name != about])
    else:
        item, by = facts.white, "colour"
        about = kind if kind in talk.ATTRIBUTES else talk.pick(rng, ("digit", "place"))
    right, asked = value(item, about), ""
    table = {"digit": wordings.DIGIT[by], "colour": wordings.COLOUR, "place": wordings.PLACE}[about]
    if kind in ("yesno", "misleading"):
        table = wordings.YESNO if kind == "yesno" else wordings.MISLEADING
        asked = talk.pick(rng, [v for v in VALUES[about] if v != right])
        if kind == "yesno" and rng.random() < 0.5:
            asked = right
    text = talk.pick(rng, table).format(
        R=_refer(item, by, rng),
        name=value(item, by),
        Y=talk.in_sentence(value(item, by)),
        A=talk.in_sentence(asked) if asked else "",
    )
    return HardQuestion(kind, text, right, asked, _values(item))


def answer(question: HardQuestion, rng: np.random.Generator) -> str:
    """A right answer, in one of the wordings of its kind."""
    form: str = question.kind
    if form == "yesno":
        form = "yes" if question.asked == question.right else "no"
    elif form == "refer":
        form = talk.attribute_of(question.right)
    elif form == "beside":
        form = "digit"
    table = easy_wordings.ANSWERS.get(form, wordings.NUMBER)
    return talk.pick(rng, table).format(
        name=question.right,
        X=talk.in_sentence(question.asked) if question.asked else "",
        Y=talk.in_sentence(question.right),
    )


def dialogue(
    facts: world.Facts, rng: np.random.Generator, kinds: Sequence[Kind], *, name: str
) -> talk.DigitsDialogue:
    """Questions of these kinds about a picture, and right answers."""
    turns = [turn for kind in kinds for turn in exchange(kind, facts, rng)]
    return talk.DigitsDialogue(name, tuple(kinds), tuple(turns), None)


def exchange(kind: Kind, facts: world.Facts, rng: np.random.Generator) -> list[record.Turn]:
    """A question and a right answer."""
    question = ask(kind, facts, rng)
    return [record.Turn("user", question.text), record.Turn("assistant", answer(question, rng))]


def score(question: HardQuestion, answer_text: str) -> bool:
    """Whether an answer is right and says nothing wrong.

    The right value must be said, and no other one but those of the digit in question, except the
    asked one after "not". `misleading` needs "not <asked>" as well. `yesno` needs the right one of
    "yes" and "no", once, and not the other; with "yes" the asked value, with "no" its denial or the
    right value.
    """
    words = answer_text.split()
    said, denied = talk.mentions(words)
    false = {question.asked} - {question.right, ""}
    if not said <= {question.right, *question.true} or not denied <= false:
        return False
    if question.kind != "yesno":
        return question.right in said and (question.kind != "misleading" or denied == false)
    verdict = [word for word in words if word in ("yes", "no")]
    if not false:
        return verdict == ["yes"] and question.asked in said
    return verdict == ["no"] and (denied == false or question.right in said)


def chance(kind: str) -> float:
    """The best a guesser can expect who hears the question and does not see the picture."""
    digits, places, colours = len(easy_world.DIGITS), len(world.PLACES), len(easy_world.COLOURS)
    each = {
        "digit": [digits],
        "place": [places],
        "yesno": [2],
        "misleading": [digits - 1, places - 1],  # one value is ruled out by the question
        "refer": [digits, places, colours - 1],  # it is never about the white digit
        "beside": [digits - 1, digits, digits],  # one is ruled out where the question names a digit
        "count": [len(world.COUNTS)],
        "sum": [len(TOTALS)],
    }
    return float(np.mean([1 / count for count in each[kind]]))


def value(item: world.Item, attribute: str) -> str:
    """The word or words for an attribute of a digit."""
    return _digit(item.digit) if attribute == "digit" else getattr(item, attribute)


def _digit(number: int) -> str:
    return easy_world.DIGITS[number]


def _values(item: world.Item) -> frozenset[str]:
    return frozenset(value(item, attribute) for attribute in talk.ATTRIBUTES)


def _refer(item: world.Item, by: str, rng: np.random.Generator) -> str:
    name = value(item, by)
    return talk.pick(rng, wordings.REFER[by]).format(name=name, Y=talk.in_sentence(name))


def _neighbors(facts: world.Facts) -> list[tuple[world.Item, str, world.Item]]:
    """(digit, "left" or "right", the digit on that side of it), where no other digit is on that side."""
    found = []
    for item in facts.items:
        row, column = item.place.split()
        side = _SIDES[column]
        beside = [other for other in facts.items if other.place.split()[1] == side]
        if len(beside) == 1 and beside[0].place.split()[0] == row:
            found.append((item, side, beside[0]))
    return found
