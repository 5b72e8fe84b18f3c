import collections
import itertools

import numpy as np
import pytest

from mvjax.commands import dialogues as commands
from mvjax.data.records import dataset
from mvjax.dialogues import prompts, topics

NOTES = "A teapot beside two cups."
TURNS = [dataset.Turn("user", "What is it?"), dataset.Turn("assistant", "A teapot.")]


def schedule(kind, seed=0, utterances=12):
    return prompts.schedule(kind, utterances, np.random.default_rng(seed))


def test_the_papers_eight_kinds_differ_in_what_both_are_told():
    assert len(prompts.KINDS) == 8 and tuple(commands.KINDS) == prompts.KINDS
    for turns in ([], TURNS[:1]):
        told = {prompts.messages(schedule(k)[0], NOTES, turns)[0]["content"] for k in prompts.KINDS}
        assert len(told) == 8


@pytest.mark.parametrize("kind", [*prompts.KINDS, "UNRELATED"])
def test_chats_alternate_and_end_with_the_other_one(kind):
    turns = TURNS * 3
    for n, of in enumerate(schedule(kind, utterances=7)):
        chat = prompts.messages(of, NOTES, turns[:n])
        roles = [m["role"] for m in chat]
        assert roles[0] == "system" and roles[-1] == "user"
        assert all(a != b for a, b in itertools.pairwise(roles))
        if n:
            assert chat[-1]["content"] == turns[n - 1].text
        assert len(chat) == 1 + n + (n % 2 == 0)


def test_both_are_given_the_caption_but_for_the_blind_pupil():
    for kind in prompts.KINDS:
        first, *_, last = schedule(kind)
        assert NOTES in prompts.messages(first, NOTES, TURNS[:1])[0]["content"]
        asks = prompts.messages(first, NOTES, [])[0]["content"]
        assert (NOTES in asks) == (kind not in ("TS2", "COMB"))
        assert (NOTES in prompts.messages(last, NOTES, TURNS)[0]["content"]) == last.user_sees


def test_comb_opens_at_large_and_then_mixes_all_but_lead2():
    names = collections.Counter(
        kind.name for seed in range(200) for kind in schedule("COMB", seed)[2:]
    )
    assert set(names) == {"LOC", "PROP", "NUM", "LEAD1", "TS1", "TS2"}
    assert max(names.values()) < 1.3 * min(names.values())
    openings = [schedule("COMB", seed)[:2] for seed in range(200)]
    assert all(a is b and a.name == "COMB" for a, b in openings)
    assert len({a.opening for a, _ in openings}) > 60
    picture = np.mean(['"picture"' in a.opening for a, _ in openings])
    assert abs(picture - 0.3) < 0.1


def test_unrelated_dialogues_know_of_no_picture():
    (kind,) = set(schedule("UNRELATED"))
    asks = prompts.messages(kind, "how bees fly", [])[0]["content"]
    answers = prompts.messages(kind, "how bees fly", TURNS[:1])[0]["content"]
    assert "how bees fly" in asks and "how bees fly" not in answers and "notes" not in asks


def test_topics_vary():
    rng = np.random.default_rng(0)
    assert len({topics.draw(rng) for _ in range(300)}) > 180
    assert len(set(topics.TOPICS)) == len(topics.TOPICS)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected one of PROP, .*, COMB, got 'prop'"):
        schedule("prop")


def test_who_sees_nothing_is_not_told_to_talk_as_if_looking():
    (kind,) = set(schedule("TS2"))
    pupil, teacher = (prompts.messages(kind, NOTES, t)[0]["content"] for t in ([], TURNS[:1]))
    assert "looks at the picture" in teacher and "looks at the picture" not in pupil
    assert all("Never let on" in text for text in (pupil, teacher))
