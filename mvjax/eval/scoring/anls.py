"""ANLS of DocVQA: average normalized Levenshtein similarity, threshold 0.5."""

from __future__ import annotations

from collections.abc import Sequence

_THRESHOLD = 0.5  # of the distance, from which on an answer counts nothing


def best(said: str, answers: Sequence[str]) -> float:
    """The highest similarity to an accepted answer, case ignored; 0 to 1."""
    return max(similarity(said.lower(), answer.lower()) for answer in answers)


def similarity(said: str, answer: str) -> float:
    """1 - edit distance / longer length if that quotient is below 0.5, else 0; 1 for two empty texts."""
    longer = max(len(said), len(answer))
    if not longer:
        return 1.0
    if abs(len(said) - len(answer)) >= _THRESHOLD * longer:  # at least so many edits
        return 0.0
    apart = _edit_distance(said, answer) / longer
    return 1 - apart if apart < _THRESHOLD else 0.0


def _edit_distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, char in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, theirs in enumerate(other, start=1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (char != theirs)),
            )
    return row[-1]
