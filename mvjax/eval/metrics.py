"""Answers to questions, counted: accuracy by question kind, and the headline over the kinds that look."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

ALL = "all"  # the headline's row: the plain mean of the kinds


@dataclasses.dataclass(frozen=True)
class Answer:
    """One question and what the model wrote.

    Attributes:
      id: names the question; the same question has the same id in every mode.
      kind: of question, such as "colour".
      question: as asked, in words.
      said: the text the model emitted.
      correct: by the benchmark's scorer.
    """

    id: str
    kind: str
    question: str
    said: str
    correct: bool


def accuracy(answers: Sequence[Answer]) -> float:
    """The mean over kinds of each kind's share of correct answers; NaN without answers."""
    shares = list(by_kind(answers).values())
    return sum(shares) / len(shares) if shares else math.nan


def by_kind(answers: Sequence[Answer]) -> dict[str, float]:
    """Share of correct answers for each kind, in order of first appearance."""
    counted: dict[str, list[bool]] = {}
    for answer in answers:
        counted.setdefault(answer.kind, []).append(answer.correct)
    return {kind: sum(marks) / len(marks) for kind, marks in counted.items()}


def standard_error(share: float, n: int) -> float:
    """Of a share of n independent answers."""
    return math.sqrt(share * (1 - share) / n) if n else math.nan


def table(modes: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """Rows {"kind", "n", mode: share, ...}, one a kind; the last row, "all", is their mean."""
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
    """The rows of `table` (all with the same keys) as aligned text, shares in per cent."""
    head = list(rows[0])
    lines = [head, *([_cell(row[key]) for key in head] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if isinstance(value, float) else str(value)
