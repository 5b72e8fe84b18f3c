"""CIDEr of captions, as papers report it: the CIDEr-D of pycocoevalcap (n-grams to 4, sigma 6).

The weight of an n-gram depends on how many images of the evaluated set have it in their references, so a set
is scored whole: means over its parts are another number. Papers print 100 times the score.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_LONGEST = 4  # words of an n-gram
_SIGMA = 6.0  # of the penalty for another length

_Grams = Mapping[tuple[str, ...], int]  # counts of the n-grams of one caption


class _Vector(NamedTuple):
    weights: list[dict[tuple[str, ...], float]]  # of each order, 1 to 4
    norms: list[float]
    bigrams: int  # the reference's measure of length


def scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each image; the set's is their mean.

    Args:
      candidates: one caption an image, words separated by spaces, as of `ptb.words`.
      references: at least one caption an image, in the same form.

    Raises:
      ValueError: if an image has no reference, or the numbers of images differ.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"CIDEr: expected references for {len(candidates)} captions, got {len(references)}"
        )
    without = [n for n, texts in enumerate(references) if not texts]
    if without:
        raise ValueError(f"CIDEr: expected a reference for every image, got none for {without[:8]}")
    counted = [[_count(text) for text in texts] for texts in references]
    images_with = collections.Counter(
        gram for grams in counted for gram in set().union(*grams)
    )  # document frequency
    log_n = math.log(len(candidates)) if candidates else 0.0
    idf = {gram: log_n - math.log(count) for gram, count in images_with.items()}
    return [
        _score(_weigh(_count(candidate), idf, log_n), [_weigh(r, idf, log_n) for r in grams])
        for candidate, grams in zip(candidates, counted, strict=True)
    ]


def _count(text: str) -> _Grams:
    words = text.split()
    return collections.Counter(
        tuple(words[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(words) - n + 1)
    )


def _weigh(grams: _Grams, idf: Mapping[tuple[str, ...], float], unseen: float) -> _Vector:
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
    for gram, count in grams.items():
        weights[len(gram) - 1][gram] = count * idf.get(gram, unseen)
    norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
    return _Vector(weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2))


def _score(candidate: _Vector, references: Sequence[_Vector]) -> float:
    """10 x the mean over orders and references of the clipped cosine, damped by the difference in length."""
    total = 0.0
    for reference in references:
        penalty = math.exp(-((candidate.bigrams - reference.bigrams) ** 2) / (2 * _SIGMA**2))
        for order in range(_LONGEST):
            theirs = reference.weights[order]
            shared = sum(
                min(weight, theirs[gram]) * theirs[gram]
                for gram, weight in candidate.weights[order].items()
                if gram in theirs
            )
            norms = candidate.norms[order] * reference.norms[order]
            total += penalty * (shared / norms if norms else shared)
    return 10 * total / (_LONGEST * len(references))
