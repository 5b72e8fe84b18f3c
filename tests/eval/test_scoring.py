"""Scorers against the answers of the reference scorers, recorded by `tools/record_scores.py`."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from mvjax.eval.scoring import anls, cider, exact, ptb, vqa

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    return json.loads(lzma.decompress((GOLDEN / name).read_bytes()))


def test_tokens_are_those_of_the_java_tokenizer():
    recorded = golden("ptb.json.xz")
    ours = [" ".join(tokens).rstrip() for tokens in ptb.tokens(recorded["captions"])]
    assert len(ours) == 5000
    differ = [n for n, tokens in enumerate(recorded["tokens"]) if tokens != ours[n]]
    assert [(recorded["captions"][n], recorded["tokens"][n], ours[n]) for n in differ] == []


def test_words_are_without_punctuation_but_with_brackets():
    said = ptb.words(['A "dog" (brown), isn\'t it -- yes...', "", "1 1/2 cups cannot; U.S."])
    assert said == ["a dog -lrb- brown -rrb- is n't it yes", "", "1\xa01/2 cups can not u.s."]


def test_a_line_break_or_an_open_tag_never_joins_captions():
    assert ptb.tokens(["a\ndog\r", "<a b='", "c' d>"])[0] == ["a", "dog"]
    assert [len(line) for line in ptb.tokens(["a\ndog\r", "<a b='", "c' d>"])] == [2, 5, 4]


def test_a_caption_may_decide_how_the_one_before_ends():
    assert ptb.words(["plan b.", "The dog"])[0] == "plan b"
    assert ptb.words(["plan b.", "Dogs"])[0] == "plan b."


def test_cider_is_that_of_pycocoevalcap():
    sets = golden("scores.json.xz")["cider"]
    assert [len(case["scores"]) for case in sets] == [1000, 1, 2, 7]
    for case in sets:
        ours = cider.scores(case["candidates"], case["references"])
        np.testing.assert_allclose(ours, case["scores"], rtol=0, atol=1e-9)
    assert np.ptp(sets[0]["scores"]) > 5


def test_cider_depends_on_the_whole_set():
    case = golden("scores.json.xz")["cider"][0]
    candidates, references = case["candidates"], case["references"]
    whole = np.mean(cider.scores(candidates, references))
    halves = [cider.scores(candidates[n::2], references[n::2]) for n in range(2)]
    assert abs(np.mean(halves) - whole) > 5e-4  # of 2.6
    few = cider.scores(candidates[:9], references[:9], corpus=references)
    np.testing.assert_allclose(few, case["scores"][:9], rtol=0, atol=1e-9)


def test_cider_names_what_is_missing():
    with pytest.raises(ValueError, match=r"a reference for every image, got none for \[1\]"):
        cider.scores(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="references for 1 captions, got 0"):
        cider.scores(["a"], [])


def test_vqa_accuracy_is_the_official_one():
    cases = golden("scores.json.xz")["vqa"]
    assert len(cases) == 1000
    ours = [vqa.accuracy(said, answers) for said, answers, _ in cases]
    np.testing.assert_allclose(ours, [value for *_, value in cases], rtol=0, atol=1e-9)
    assert len({round(value, 3) for value in ours}) == 5  # 0, 0.3, 0.6, 0.9, 1


def test_vqa_normalizes_only_where_people_differ():
    assert vqa.accuracy("Yes.", ["yes"] * 10) == 0
    assert vqa.accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert vqa.normalize("The two dogs, dont run; 1,000.") == "2 dogs don't run 1000"
    assert vqa.normalize("." * 40) == "." * 8  # the official code removes 32


def test_exact_matches():
    assert exact.any_case("Sandra BOYNTON", "sandra boynton") == 1
    assert exact.any_case("Sandra Boynton.", "Sandra Boynton") == 0
    assert exact.letters_and_digits("sandra boynton.", "Sandra Boynton") == 1
    assert exact.letters_and_digits("J R R Tolkien", "J.R.R. Tolkien") == 1
    assert exact.letters_and_digits("Sandra", "Sandra Boynton") == 0
    assert (
        exact.number("Four", "4") == exact.number("none", "0") == exact.number("twenty", "20") == 1
    )
    assert (
        exact.number("four dogs", "4")
        == exact.number("thirty", "30")
        == exact.number("4.", "4")
        == 0
    )


@pytest.mark.parametrize(
    ("said", "answer", "expected"),
    [
        ("1/8/93", "1/8/93", 1),
        ("1/8/94", "1/8/93", 5 / 6),
        ("abcd", "abxy", 0),  # at the threshold
        ("abcde", "abcxy", 0.6),
        ("", "a", 0),
        ("", "", 1),
        ("kitten", "sitting", 4 / 7),
    ],
)
def test_anls(said, answer, expected):
    assert anls.similarity(said, answer) == pytest.approx(expected)
    assert anls.similarity(answer, said) == pytest.approx(expected)


def test_anls_takes_the_best_answer_in_any_case():
    assert anls.best("jan 8", ["1/8/93", "JAN 8"]) == 1
