import itertools

import numpy as np
import pytest

from mvjax.digits import talk, wordings, world

SEVEN = world.Facts(7, "red", "top left")


def _rng(seed=0):
    return np.random.default_rng(seed)


def test_every_correct_answer_scores_and_answers_to_other_facts_rarely_do():
    rng = _rng()
    for kind in talk.KINDS:
        other = 0
        for _ in range(300):
            facts, wrong = talk.random_facts(rng), talk.random_facts(rng)
            question = talk.ask(kind, facts, rng)
            assert talk.score(kind, question.asked, facts, talk.answer(question, facts, rng))
            other += talk.score(kind, question.asked, facts, talk.answer(question, wrong, rng))
        assert other / 300 < talk.chance(kind) + 0.1, kind


@pytest.mark.parametrize(
    ("kind", "asked", "text", "right"),
    [
        ("digit", "", "the digit is seven", True),
        ("digit", "", "the digit is six", False),
        ("digit", "", "the digit is seven six", False),
        ("digit", "", "the colour is red", False),
        ("digit", "", "a blue seven", False),
        ("place", "", "it is at the top left", True),
        ("place", "", "it is at the top right", False),
        ("place", "", "it is at the top", False),
        ("describe", "", "i see a red seven at the top left", True),
        ("describe", "", "i see a red seven", False),
        ("describe", "", "i see a red seven in the middle", False),
        ("misleading", "green", "it is not green it is red", True),
        ("misleading", "green", "it is red", False),
        ("misleading", "green", "it is not green", False),
        ("misleading", "green", "it is not blue it is red", False),
        ("misleading", "green", "it is green not red", False),
        ("misleading", "middle", "it is not in the middle but at the top left", True),
        ("yesno", "seven", "it is a seven so yes", True),
        ("yesno", "seven", "yes it is a seven", True),
        ("yesno", "seven", "it is a seven so no", False),
        ("yesno", "seven", "it is a seven", False),
        ("yesno", "seven", "it is a seven so yes no", False),
        ("yesno", "seven", "it is a three so no", False),
        ("yesno", "seven", "it is a three so yes", False),
        ("yesno", "seven", "yes", False),
        ("yesno", "three", "it is a seven so no", True),
        ("yesno", "three", "no it is not a three it is a seven", True),
        ("yesno", "three", "no it is not a three", True),
        ("yesno", "three", "it is a six so no", False),
        ("yesno", "three", "it is a seven so yes", False),
        ("yesno", "three", "no", False),
        ("yesno", "eight", "no it is not an eight but a seven", True),
        ("digit", "", "", False),
    ],
)
def test_score(kind, asked, text, right):
    assert talk.score(kind, asked, SEVEN, text) is right


def test_misleading_asks_what_is_false_and_yesno_is_balanced():
    rng = _rng(1)
    asked = [talk.ask("misleading", SEVEN, rng).asked for _ in range(300)]
    truths = {talk.truth(SEVEN, a) for a in talk.ATTRIBUTES}
    assert not truths & set(asked)
    assert {value in world.DIGITS for value in asked} == {True, False}
    share = np.mean([talk.ask("yesno", SEVEN, rng).asked in truths for _ in range(1000)])
    assert 0.44 < share < 0.56


def test_words_are_a_small_closed_vocabulary():
    rng, seen = _rng(2), set()
    for _ in range(1200):
        for dialogue in (
            talk.visual_dialogue(talk.random_facts(rng), rng),
            talk.told_dialogue(rng),
            talk.small_talk(rng),
        ):
            for turn in dialogue.turns:
                assert turn.text == turn.text.lower() and turn.text.replace(" ", "").isalpha()
                seen |= set(turn.text.split())
    assert seen == set(talk.vocabulary())
    assert len(seen) < 250


def test_dialogues_alternate_and_name_their_kinds():
    rng = _rng(3)
    for _ in range(100):
        for dialogue in (talk.told_dialogue(rng), talk.blind_dialogue(rng), talk.small_talk(rng)):
            speakers = [turn.speaker for turn in dialogue.turns]
            assert all(a != b for a, b in itertools.pairwise(speakers))
            assert speakers[-1] == "assistant"
            assert dialogue.facts is None and 1 <= len(dialogue.kinds) <= 3
    dialogue = talk.visual_dialogue(SEVEN, rng, kinds=["yesno", "digit"])
    assert dialogue.kinds == ("yesno", "digit") and dialogue.facts == SEVEN
    assert "seven" in dialogue.turns[-1].text


def test_told_answers_follow_from_what_was_told():
    rng = _rng(4)
    for _ in range(200):
        dialogue = talk.told_dialogue(rng)
        told = set(dialogue.turns[0].text.split())
        for kind, turn in zip(dialogue.kinds, dialogue.turns[3::2], strict=True):
            if kind in ("digit", "colour"):
                assert turn.text.split()[-1] in told


def test_small_talk_echoes_every_value():
    rng, echoed = _rng(5), set()
    for _ in range(1000):
        dialogue = talk.small_talk(rng, turns=2)
        assert len(dialogue.turns) == 4
        for question, reply in zip(dialogue.turns[::2], dialogue.turns[1::2]):
            if question.text.endswith(reply.text):
                echoed.add(reply.text)
    assert set(world.DIGITS) | set(world.COLOURS) | set(world.PLACES) <= echoed


def test_wordings_are_varied():
    for table in (wordings.QUESTIONS, wordings.YESNO, wordings.MISLEADING):
        assert all(len(set(forms)) >= 6 for forms in table.values())
    assert all(len(set(forms)) >= 3 for forms in wordings.ANSWERS.values())


def test_same_seed_same_talk():
    assert talk.told_dialogue(_rng(6)) == talk.told_dialogue(_rng(6))
    assert talk.told_dialogue(_rng(6)) != talk.told_dialogue(_rng(7))
