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


def scores(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    corpus: Sequence[Sequence[str]] | None = None,
) -> list[float]:
    """The score of each image; the set's is their mean.

    Args:
      candidates: one caption an image, words separated by spaces, as of `ptb.words`.
      references: at least one caption an image, in the same form.
      corpus: the references of all images of the set, where only some of them are scored: an image then has
        the score that it has in the whole set.

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
    idf, unseen = _idf(references if corpus is None else corpus)
    return [
        _score(
            _weigh(_count(candidate), idf, unseen), [_weigh(_count(t), idf, unseen) for t in texts]
        )
        for candidate, texts in zip(candidates, references, strict=True)
    ]


def _idf(corpus: Sequence[Sequence[str]]) -> tuple[dict[tuple[str, ...], float], float]:
    """Weights by the number of images that have an n-gram, and that of one that none has."""
    images = collections.Counter(
        gram for texts in corpus for gram in set().union(*map(_count, texts))
    )
    log_n = math.log(max(len(corpus), 1))
    return {gram: log_n - math.log(count) for gram, count in images.items()}, log_n


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
