"""Accuracy of scored answers: by question kind, their mean, and tables of both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

ALL = "all"  # the last row of a table: the plain mean of the kinds


@dataclasses.dataclass(frozen=True)
class ScoredAnswer:
    """One question and what the model wrote."""

    id: str  # of the question, the same in every mode
    kind: str  # of question, such as "colour"
    question: str
    said: str
    correct: bool


def accuracy(answers: Sequence[ScoredAnswer]) -> float:
    """The mean over kinds of each kind's accuracy; NaN without answers."""
    kinds = by_kind(answers).values()
    return sum(kinds) / len(kinds) if kinds else math.nan


def by_kind(answers: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Accuracy for each kind, in order of first appearance."""
    correct: dict[str, list[bool]] = {}
    for answer in answers:
        correct.setdefault(answer.kind, []).append(answer.correct)
    return {kind: sum(marks) / len(marks) for kind, marks in correct.items()}


def interval(accuracy: float, counts: Sequence[int]) -> tuple[float, float]:
    """Wilson's 95% interval of an accuracy, over independent questions only: not over training runs.

    `counts` are the numbers of questions of the kinds that the accuracy is the mean of; where they are equal,
    the interval is that of all questions together.
    """
    if not counts:
        return math.nan, math.nan
    z2 = 1.96**2 * sum(1 / n for n in counts) / len(counts) ** 2  # z^2 / n
    half = math.sqrt(z2 * accuracy * (1 - accuracy) + z2**2 / 4)
    return (accuracy + z2 / 2 - half) / (1 + z2), (accuracy + z2 / 2 + half) / (1 + z2)


def table(modes: Mapping[str, Sequence[ScoredAnswer]]) -> list[dict[str, Any]]:
    """Rows {"kind", "n", mode: accuracy, ...}, one a kind; the last row, "all", is their mean."""
    kinds: dict[str, int] = {}
    for answers in modes.values():
        for kind in by_kind(answers):
            kinds.setdefault(kind, sum(a.kind == kind for a in answers))
    shares = {mode: by_kind(answers) for mode, answers in modes.items()}
    rows: list[dict[str, Any]] = [
        {"kind": kind, "n": n, **{mode: share.get(kind) for mode, share in shares.items()}}
        for kind, n in kinds.items()
    ]
    means = {mode: accuracy(answers) if answers else None for mode, answers in modes.items()}
    return [*rows, {"kind": ALL, "n": sum(kinds.values()), **means}]


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `table` (all with the same keys) as aligned text, accuracies in percent."""
    head = list(rows[0])
    lines = [head, *([_cell(row[key]) for key in head] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if isinstance(value, float) else str(value)
