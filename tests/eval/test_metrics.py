"""Counting answers: means over kinds, tables, text."""

import math

import pytest

from mvjax.eval import metrics


def _answers(marks: dict[str, str]) -> list[metrics.ScoredAnswer]:
    """{"digit": "110"} -> two right answers and a wrong one."""
    return [
        metrics.ScoredAnswer(f"{kind}-{i}", kind, "what is it", "seven", mark == "1")
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


def test_standard_error():
    assert metrics.standard_error(0.5, 100) == pytest.approx(0.05)
