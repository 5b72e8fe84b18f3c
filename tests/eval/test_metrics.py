"""Counting answers: means over kinds, tables, text."""

import math

import numpy as np
import pytest
from scipy import stats

from mvjax.eval import metrics


def _answers(marks: dict[str, str]) -> list[metrics.ScoredAnswer]:
    """{"digit": "110"} -> two right answers and a wrong one."""
    return [
        metrics.ScoredAnswer(f"{kind}-{i}", kind, "what is it", "seven", float(mark))
        for kind, row in marks.items()
        for i, mark in enumerate(row)
    ]


def test_the_headline_is_the_mean_of_the_kinds_not_of_the_questions():
    answers = _answers({"digit": "1111", "colour": "0", "place": "10"})
    assert metrics.by_kind(answers) == {"digit": 1.0, "colour": 0.0, "place": 0.5}
    assert metrics.accuracy(answers) == pytest.approx(0.5)


def test_no_answers_is_not_zero_accuracy():
    assert math.isnan(metrics.accuracy([]))


def test_table_has_a_row_a_kind_and_marks_kinds_that_a_mode_did_not_ask():
    rows = metrics.table(
        {"text": _answers({"digit": "11", "place": "10"}), "audio": _answers({"digit": "01"})}
    )
    assert rows == [
        {"kind": "digit", "n": 2, "text": 1.0, "audio": 0.5},
        {"kind": "place", "n": 2, "text": 0.5, "audio": None},
        {"kind": "all", "n": 4, "text": 0.75, "audio": 0.5},
    ]
    assert metrics.text_table(rows).splitlines() == [
        "kind   n   text  audio",
        "digit  2  100.0   50.0",
        "place  2   50.0      -",
        "all    4   75.0   50.0",
    ]


@pytest.mark.parametrize(("right", "n"), [(0, 8), (8, 8), (43, 48), (1, 2)])
def test_the_interval_is_wilsons(right, n):
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert metrics.interval(right / n, [n]) == pytest.approx(tuple(expected), abs=1e-5)


def test_the_interval_of_a_mean_of_kinds_has_the_kinds_variance():
    assert metrics.interval(0.9, [48] * 6) == pytest.approx(metrics.interval(0.9, [288]))
    low, high = metrics.interval(0.5, [10_000, 100])  # variance (1/10000 + 1/100) / 16
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.0101 / 16), rel=0.01)


def test_the_headline_may_be_the_mean_of_the_samples():
    answers = _answers({"digit": "1111", "colour": "0"})
    found = metrics.summary(answers)
    assert found.overall == pytest.approx(0.8) and found.kinds == {"digit": 1.0, "colour": 0.0}
    assert found.interval == metrics.interval(0.8, [5])


@pytest.mark.parametrize("overall", ["samples", "kinds"])
def test_the_interval_of_partial_scores_is_a_bootstraps(overall):
    rng = np.random.default_rng(1)
    scores = np.round(rng.random(400), 1)
    answers = [
        metrics.ScoredAnswer(str(i), "ab"[i % 4 == 0], "", "", score)
        for i, score in enumerate(scores)
    ]
    found = metrics.summary(answers, overall=overall)
    low, high = found.interval
    parts = [scores[0::4], np.delete(scores, np.s_[0::4])] if overall == "kinds" else [scores]
    error = math.sqrt(sum(part.var() / len(part) for part in parts)) / len(parts)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert (high + low) / 2 == pytest.approx(found.overall, abs=error / 5)
