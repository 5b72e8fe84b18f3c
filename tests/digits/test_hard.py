"""The hard digits world: facts that refer to one digit, scoring, chance, and both benchmarks' samples."""

import collections

import jax
import numpy as np
import pytest

from mvjax.data import images
from mvjax.digits import talk as easy_talk
from mvjax.digits import world as easy_world
from mvjax.digits.hard import benchmark, frozen_models, switch, talk, world
from mvjax.nn import siglip
from mvjax.weights import big_vision

ITEMS = (
    world.Item(7, "white", "top left"),
    world.Item(4, "blue", "top right"),
    world.Item(2, "green", "bottom left"),
)
FACTS = world.Facts(ITEMS)


def test_scenes_are_a_pure_function_of_the_seed_and_splits_share_no_scan():
    three, five = world.scenes("test", 3, seed=7), world.scenes("test", 5, seed=7)
    for a, b in zip(three, five, strict=False):
        assert (a.id, a.facts, a.scans) == (b.id, b.facts, b.scans)
        np.testing.assert_array_equal(a.image, b.image)
    assert (three[0].image != world.scenes("test", 1, seed=8)[0].image).any()
    for split in ("train", "test"):
        found = {scan for scene in world.scenes(split, 30, seed=1) for scan in scene.scans}
        assert found <= set(easy_world.scan_indices(split))


def test_every_digit_color_and_place_names_at_most_one_digit_of_a_scene():
    rng = np.random.default_rng(0)
    counts = collections.Counter()
    for _ in range(500):
        items = world.random_facts(rng).items
        counts[len(items)] += 1
        for attribute in easy_talk.ATTRIBUTES:
            values = [talk.value(item, attribute) for item in items]
            assert len(set(values)) == len(values)
    assert set(counts) == set(world.COUNTS) and min(counts.values()) > 120
    with pytest.raises(ValueError, match=r"different digits .*\[7, 7\]"):
        world.Facts((ITEMS[0], world.Item(7, "blue", "top right")))
    with pytest.raises(ValueError, match="one white digit, got none"):
        world.Facts(ITEMS[1:])


def test_a_question_names_one_digit_and_never_what_it_asks_for():
    """The digit is found again from the words of the question alone."""
    rng = np.random.default_rng(1)
    for kind in ("digit", "place", "misleading", "yesno", "refer"):
        for _ in range(100):
            facts = world.random_facts(rng)
            question = talk.ask(kind, facts, rng)
            named, _ = easy_talk.mentions(question.text.split())
            named -= {question.asked}
            meant = [item for item in facts.items if named & _values(item)]
            assert len(named) == len(meant) == 1, question
            assert (meant[0] == facts.white) == (kind != "refer")
            assert question.right in _values(meant[0]) - named and question.true == _values(
                meant[0]
            )


def test_beside_has_one_answer_however_side_is_understood():
    rng = np.random.default_rng(2)
    for i in range(100):
        facts = talk.scene("beside", "test", 3, i).facts
        question = talk.ask("beside", facts, rng)
        side = next(word for word in ("left", "right") if f"{word} of" in question.text)
        there = [item for item in facts.items if item.place.endswith(side)]
        assert [talk.value(item, "digit") for item in there] == [question.right]
    assert "beside" in talk.possible(FACTS)  # left of the four; the seven and the two have one too
    assert "beside" not in talk.possible(world.Facts((ITEMS[0], ITEMS[2])))


@pytest.mark.parametrize("kind", talk.KINDS)
def test_right_answers_score_and_chance_is_what_a_guesser_gets(kind):
    """The guesser answers as if a picture of its own, with the same thing asked about, were the one."""
    rng, guessed, n = np.random.default_rng([4, talk.KINDS.index(kind)]), 0, 250
    for _ in range(n):
        facts = _facts(kind, rng)
        question = talk.ask(kind, facts, rng)
        answer = talk.answer(question, rng)
        assert talk.score(question, answer), (question, answer)
        false = next(v for v in easy_world.DIGITS if v not in {question.right, *question.true})
        assert not talk.score(question, "") and not talk.score(question, f"{answer} {false}")
        assert not talk.score(question, answer.replace(question.right, "nothing"))
        guessed += talk.score(question, _guess(question, rng))
    spread = 4 * np.sqrt(talk.chance(kind) / n)
    assert guessed / n == pytest.approx(talk.chance(kind), abs=spread)


@pytest.mark.parametrize(
    ("question", "text", "right"),
    [
        (("digit", "seven", ""), "the digit is seven", True),
        (("digit", "seven", ""), "i see a red seven at the top left", True),
        (("digit", "seven", ""), "the digit is four", False),
        (("digit", "seven", ""), "the digit is seven four", False),
        (("digit", "seven", ""), "a blue seven", False),
        (("misleading", "red", "blue"), "it is not blue it is red", True),
        (("misleading", "red", "blue"), "it is red", False),
        (("misleading", "red", "blue"), "it is not green it is red", False),
        (("yesno", "red", "red"), "it is red so yes", True),
        (("yesno", "red", "red"), "it is red so no", False),
        (("yesno", "red", "blue"), "it is red so no", True),
        (("yesno", "red", "blue"), "no it is not blue", True),
        (("yesno", "red", "blue"), "it is blue so yes", False),
    ],
)
def test_score(question, text, right):
    kind, value, asked = question
    asked_about = talk.HardQuestion(
        kind, "", value, asked, true=frozenset({"seven", "red", "top left"})
    )
    assert talk.score(asked_about, text) is right


def test_sums_are_equally_frequent_and_counts_count_no_scribble():
    sums = collections.Counter(talk.scene("sum", "test", 5, i).facts.total for i in range(120))
    assert set(sums) == set(talk.TOTALS) and min(sums.values()) > 4
    assert talk.ask("count", FACTS, np.random.default_rng(0)).right == "three"
    assert "sum" not in talk.possible(FACTS) and talk.possible(FACTS)[-1] == "count"


def test_the_benchmarks_samples_are_theirs_whatever_the_limit_and_hold_no_image():
    made = benchmark.HardDigitsBenchmark()
    few, more = made.samples(9, 1), made.samples(18, 1)
    assert [s.id for s in few] == [s.id for s in more[:9]]
    assert [s.kind for s in few] == list(benchmark.KINDS)
    image, back = few[0].image, few[-1]
    assert image is not None
    np.testing.assert_array_equal(image(), talk.scene("digit", "test", 1, 0).image)
    assert all(made.score(s, talk.answer(s.truth, np.random.default_rng(0))) == 1 for s in more)
    assert [exchange.topic for exchange in back.before] == ["image", "off-topic", "off-topic"]
    assert back.before[0].question.startswith(("how many", "count"))  # which tells no other answer
    assert all(not s.before for s in few[:-1])


def test_switching_asks_the_same_after_more_turns_which_end_alike():
    made = switch.DigitsSwitchBenchmark()
    samples = made.samples(2 * len(switch.TURNS), 1)
    leaving, coming = samples[: len(switch.TURNS)], samples[len(switch.TURNS) :]
    for group, topic, direction in (
        (leaving, "off-topic", "image to other"),
        (coming, "image", "other to image"),
    ):
        assert len({s.prompt for s in group}) == 1 and {s.topic for s in group} == {topic}
        for sample, turns in zip(group, switch.TURNS, strict=True):
            assert made.columns(sample.kind) == {"direction": direction, "turns": turns}
            assert len(sample.before) == turns
            said = [(exchange.question, exchange.answer) for exchange in sample.before]
            assert said == [(e.question, e.answer) for e in group[-1].before[10 - turns :]]
            assert {exchange.topic for exchange in sample.before} <= {"image", "off-topic"} - {
                topic
            }
    for sample in leaving:
        assert made.score(sample, sample.truth) == 1 and made.score(sample, "i see red") == 0
    spoken = coming[-1].before[-1]
    assert spoken.answer_speech is not None
    assert [word.text for word in spoken.answer_speech().words] == spoken.answer.split()


def test_the_shipped_encoder_tells_of_each_corner_its_digit_and_color():
    """By least squares on the corner's mean token; `tools/make_hard_siglip.py` prints finer figures."""
    params = big_vision.load_siglip(frozen_models.FROZEN.siglip, frozen_models.MODEL.siglip)
    encode = jax.jit(siglip.Siglip(frozen_models.MODEL.siglip).apply)

    def corners(scenes: list[world.Scene]) -> tuple[np.ndarray, list[world.Item | None]]:
        """Mean tokens of all corners, each with its place, and what is there."""
        pixels = images.normalize(np.stack([scene.image for scene in scenes]))
        tokens = np.asarray(encode({"params": params}, pixels)).reshape(-1, 2, 2, 2, 2, 64)
        x = tokens.mean((2, 4)).reshape(-1, 64)
        places = [{item.place: item for item in scene.facts.items} for scene in scenes]
        here = [items.get(place) for items in places for place in world.PLACES]
        return np.concatenate([x, np.ones((len(x), 1), np.float32)], 1), here

    x, known = corners(world.scenes("train", 400, seed=0))
    x_test, shown = corners(world.scenes("test", 150, seed=0))
    for attribute, floor in (("digit", 0.9), ("colour", 0.97)):
        names = [item and talk.value(item, attribute) for item in known]
        truth = np.array([item and talk.value(item, attribute) for item in shown], object)
        values = list(dict.fromkeys(names))
        targets = np.eye(len(values))[[values.index(name) for name in names]]
        read = (x_test @ np.linalg.lstsq(x, targets, rcond=None)[0]).argmax(1)
        assert np.mean([values[i] for i in read] == truth) >= floor, attribute


def _values(item: world.Item) -> set[str]:
    return {talk.value(item, attribute) for attribute in easy_talk.ATTRIBUTES}


def _facts(kind, rng: np.random.Generator) -> world.Facts:
    """As `talk.scene` draws them, without painting."""
    while True:
        total = int(rng.choice(talk.TOTALS)) if kind == "sum" else None
        facts = world.random_facts(rng, total=total)
        if kind in talk.possible(facts):
            return facts


def _guess(question: talk.HardQuestion, rng: np.random.Generator) -> str:
    """The best answer without the image: a value that the question leaves possible."""
    if question.kind == "yesno":
        return f"it is {easy_talk.in_sentence(question.asked)} so yes"
    if question.kind == "count":
        return "the number is three"
    if question.kind == "sum":
        return "the number is nine"
    named, _ = easy_talk.mentions(question.text.split())
    about = easy_talk.attribute_of(question.right)
    named |= {world.WHITE} if question.kind == "refer" else set()
    value = easy_talk.pick(rng, [v for v in talk.VALUES[about] if v not in named])
    return f"it is not {question.asked} it is {value}" if question.asked else f"it is {value}"
