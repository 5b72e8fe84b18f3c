"""Scores of answers: by question kind, overall with an interval, and tables of them."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

ALL = "all"  # the last row of a table
_RESAMPLES = 2000  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class ScoredAnswer:
    """One question and what the model wrote."""

    id: str  # of the sample, the same in every mode
    kind: str  # of question, such as "colour"
    prompt: str
    said: str
    score: float | None  # 0 to 1; None: it depends on all answers

    @property
    def correct(self) -> bool:
        """Whether it has the full score."""
        return self.score == 1


class Summary(NamedTuple):
    """Scores of one mode."""

    kinds: dict[str, float]  # in order of first appearance; then other scores of all answers
    overall: float  # NaN without answers
    interval: tuple[
        float, float
    ]  # of it, 95%, over independent questions only: not over training runs


def summary(
    answers: Sequence[ScoredAnswer],
    *,
    overall: Literal["kinds", "samples"] = "samples",
    at_most_one: bool = True,
) -> Summary:
    """Mean score of each kind, and of the kinds or of all samples.

    The interval is Wilson's if every score is 0 or 1, and no score may exceed 1; else a bootstrap's over the
    samples of each kind.
    """
    scores = _scores(answers)
    kinds = {kind: float(np.mean(values)) for kind, values in scores.items()}
    if not kinds:
        return Summary({}, math.nan, (math.nan, math.nan))
    counts = [len(values) for values in scores.values()]
    even, every = overall == "kinds", np.concatenate(list(scores.values()))
    mean = float(np.mean(list(kinds.values()) if even else every))
    if at_most_one and np.isin(every, (0.0, 1.0)).all():
        return Summary(kinds, mean, interval(mean, counts if even else [sum(counts)]))
    rng = np.random.default_rng(0)
    parts = list(scores.values()) if even else [every]
    drawn = np.mean([_resampled(values, rng) for values in parts], axis=0)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Summary(kinds, mean, (float(low), float(high)))


def accuracy(answers: Sequence[ScoredAnswer]) -> float:
    """The mean over kinds of each kind's mean score; NaN without answers."""
    return summary(answers, overall="kinds").overall


def by_kind(answers: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Mean score of each kind, in order of first appearance."""
    return summary(answers).kinds


def interval(accuracy: float, counts: Sequence[int]) -> tuple[float, float]:
    """Wilson's 95% interval of an accuracy, over independent questions only: not over training runs.

    `counts` are the numbers of questions of the kinds that the accuracy is the mean of; where they are equal,
    the interval is that of all questions together.
    """
    if not counts:
        return math.nan, math.nan
    z2 = 1.96**2 * sum(1 / n for n in counts) / len(counts) ** 2  # z^2 / n
    half = math.sqrt(z2 * accuracy * (1 - accuracy) + z2**2 / 4)
    low, high = ((accuracy + z2 / 2 + sign * half) / (1 + z2) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def table(
    modes: Mapping[str, Sequence[ScoredAnswer]], summaries: Mapping[str, Summary] | None = None
) -> list[dict[str, Any]]:
    """Rows {"kind", "n", mode: score, ...}, one a kind; the last row, "all", is the summaries' overall.

    Without summaries they are those of `summary`, the means of the kinds.
    """
    if summaries is None:
        summaries = {mode: summary(answers, overall="kinds") for mode, answers in modes.items()}
    kinds: dict[str, int] = {}
    for answers in modes.values():
        for kind, n in collections.Counter(answer.kind for answer in answers).items():
            kinds.setdefault(kind, n)
    total = sum(kinds.values())
    for more in summaries.values():  # other scores of the same answers have rows, too
        kinds |= {kind: total for kind in more.kinds if kind not in kinds}
    rows: list[dict[str, Any]] = [
        {"kind": kind, "n": n, **{mode: s.kinds.get(kind) for mode, s in summaries.items()}}
        for kind, n in kinds.items()
    ]
    means = {mode: s.overall if s.kinds else None for mode, s in summaries.items()}
    return [*rows, {"kind": ALL, "n": total, **means}]


def _scores(answers: Sequence[ScoredAnswer]) -> dict[str, np.ndarray]:
    scores: dict[str, list[float]] = {}
    for answer in answers:
        assert answer.score is not None, "a benchmark without scores has a summary of its own"
        scores.setdefault(answer.kind, []).append(float(answer.score))
    return {kind: np.array(values) for kind, values in scores.items()}


def _resampled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of resamples, drawn a few at a time: sets of 200,000 samples are common."""
    at_once = max(1, 10_000_000 // len(values))
    means = [
        rng.choice(values, (min(at_once, _RESAMPLES - done), len(values))).mean(axis=1)
        for done in range(0, _RESAMPLES, at_once)
    ]
    return np.concatenate(means)


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `table` as aligned text, accuracies in percent; what a row lacks is a dash."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    lines = [head, *([_cell(row.get(key)) for key in head] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if isinstance(value, float) else str(value)
