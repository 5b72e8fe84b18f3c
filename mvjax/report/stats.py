"""Means over seeds with intervals, and paired tests against a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

FLIPS = 10_000  # of the permutation test


class Mean(NamedTuple):
    """A mean over seeds and half the width of its 95% interval by Student's t; None with one seed."""

    value: float
    half: float | None
    n: int

    def ends(self) -> tuple[float, float] | None:
        """Of the interval."""
        return None if self.half is None else (self.value - self.half, self.value + self.half)


class Difference(NamedTuple):
    """A trial less the baseline; p values are two-sided, None where there is no test."""

    mean: Mean  # of the seeds that both have
    p_seeds: float | None  # paired t test over seeds
    p_questions: float | None  # sign-flip permutation over questions
    questions: int  # that both were asked
    asked_seeds: int  # of how many seeds the answers to them are known


def mean(values: Sequence[float]) -> Mean:
    """Returns the mean over seeds and its interval."""
    from scipy import stats

    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return Mean(float(x.mean()), None, len(x))
    error = float(x.std(ddof=1)) / math.sqrt(len(x)) if _spread(x) else 0.0
    return Mean(float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1)) * error, len(x))


def difference(
    ours: Mapping[int, float],
    baseline: Mapping[int, float],
    *,
    answers: Mapping[int, tuple[Mapping[str, float], Mapping[str, float]]],
) -> Difference | None:
    """Compares {seed: score} of a trial and of the baseline; None if they have no seed in common.

    `answers` are {seed: ({question: score} of the trial, the same of the baseline)}. Over seeds the
    differences of equal seeds are tested against 0; over questions each question's difference, a mean over
    those seeds.
    """
    seeds = sorted(ours.keys() & baseline.keys())
    if not seeds:
        return None
    of_seeds = [ours[seed] - baseline[seed] for seed in seeds]
    pairs = [answers[seed] for seed in seeds if seed in answers]
    asked = set.intersection(*(a.keys() & b.keys() for a, b in pairs)) if pairs else set()
    of_questions = [np.mean([a[name] - b[name] for a, b in pairs]) for name in sorted(asked)]
    return Difference(
        mean=mean(of_seeds),
        p_seeds=_t_test(of_seeds),
        p_questions=_sign_flips(np.array(of_questions)),
        questions=len(of_questions),
        asked_seeds=len(pairs),
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p values corrected for all comparisons (Holm); None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected


def _t_test(differences: Sequence[float]) -> float | None:
    """Of seeds; None with one seed, or where all differences are equal, which has no spread to test with."""
    from scipy import stats

    n = len(differences)
    if n < 2 or not _spread(differences):
        return None
    t = float(np.mean(differences)) / (float(np.std(differences, ddof=1)) / math.sqrt(n))
    return float(2 * stats.t.sf(abs(t), n - 1))


def _spread(values: Sequence[float] | np.ndarray) -> bool:
    """Whether values differ by more than rounding."""
    return float(np.ptp(values)) > 1e-9


def _sign_flips(differences: np.ndarray) -> float | None:
    """The share of random signs that give a mean at least as far from 0; None without questions."""
    moved = differences[differences != 0]
    if not len(differences):
        return None
    rng = np.random.default_rng(0)
    least = abs(float(moved.sum())) - 1e-9
    extreme = 0
    for _ in range(10):  # a few at a time: 10,000 questions are common
        signs = rng.integers(0, 2, (FLIPS // 10, len(moved)), dtype=np.int8) * 2 - 1
        extreme += int(np.sum(np.abs(signs @ moved) >= least))
    return (1 + extreme) / (1 + FLIPS)
