"""Windows: which part of a dialogue a row holds, and how three dialogues share a row.

    crop     a window of one spoken dialogue                   .....[=======]....
    join     unrelated talk around some of its exchanges       [...bb|=======|aaa...]
    whole    the exchanges of a written dialogue that fit      q a [q a q a] q a

A dialogue is divided into exchanges, a user's turn and the answer to it: bounds 0 = b[0] < b[1] < ... < b[n],
in frames or tokens; exchange i lies in [b[i], b[i + 1]). The paper says that all three dialogues are trimmed
at random (section 3.3), not how: the rules here are ours.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

import numpy as np

from mvjax import types
from mvjax.data.records import dataset

Bounds = Sequence[int]


def spoken_exchanges(record: dataset.Record | dataset.StoredRecord) -> list[int]:
    """Returns the bounds of the exchanges of a spoken record, in frames.

    An exchange ends two frames after its last word; what follows the last answer belongs to none. A record
    is a single exchange if its words are not those of its turns one by one.
    """
    frames = record.frames
    words = record.words or ()
    ends, count = [], 0
    for first, stop in _exchange_turns(record.turns):
        answer = [turn for turn in record.turns[first:stop] if turn.speaker == "assistant"]
        count += sum(len(turn.text.split()) for turn in answer)
        ends.append(count)
    if not words or record.turns[-1].speaker != "assistant":
        return [0, frames]
    last_words = [words[end - 1] for end in ends] if ends[-1] == len(words) else words[-1:]
    stops = [min(frames, math.floor(word.end * types.FRAME_RATE) + 2) for word in last_words]
    return sorted({0, *stops})


def written_exchanges(
    turns: Sequence[dataset.Turn], lengths: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the bounds of the exchanges, in tokens, and the turns [first, stop) of each.

    Args:
      turns: of the dialogue.
      lengths: of each turn in tokens, its marks included.
    """
    spans = _exchange_turns(turns)
    return [0, *np.cumsum([sum(lengths[a:b]) for a, b in spans]).tolist()], spans


def crop(length: int, size: int, rng: np.random.Generator) -> slice:
    """Draws a window of at most `size` frames of a dialogue.

    A window that slides from its last frame on the first of the dialogue to its first frame on the last is
    moved inside: start and end are then seen as often as any frame far from them, size / (length + size - 1).
    """
    start = int(np.clip(rng.integers(1 - size, length), 0, max(length - size, 0)))
    return slice(start, min(start + size, length))


def join(
    before: Bounds, middle: Bounds, after: Bounds, *, size: int, rng: np.random.Generator
) -> tuple[slice, slice, slice]:
    """Draws what a row holds of a dialogue and of unrelated talk before and after it, in frames.

    Of the dialogue: a random number of its exchanges, as many as leave room for one of the others. Of the
    talk: the end of `before` and the start of `after`, divided at random such that one of them has a whole
    exchange. The row is full if the talk is long enough. Where no exchanges fit, pieces are cut within them.
    """
    # of the talk before and after: (frames, frames of the exchange next to the dialogue)
    talk = [(before[-1], before[-1] - before[-2]), (after[-1], after[1])]
    need = min(exchange for _, exchange in talk)
    window = _some_exchanges(middle, size - need, rng)
    if window is None:
        window = crop(middle[-1], max(size - need, size // 2), rng)
    room = size - (window.stop - window.start)
    side = int(rng.integers(2))  # whose share is drawn; the other side gets the rest
    (length, exchange), (other_length, other_exchange) = talk[side], talk[1 - side]
    shares = np.arange(min(room, length) + 1)
    rests = np.minimum(room - shares, other_length)
    fitting = np.flatnonzero((shares >= exchange) | (rests >= other_exchange))
    drawn = int(rng.choice(fitting if fitting.size else shares))
    prefix, suffix = (drawn, int(rests[drawn]))[:: 1 - 2 * side]
    return slice(before[-1] - prefix, before[-1]), window, slice(0, suffix)


def whole(bounds: Bounds, size: int, rng: np.random.Generator) -> slice:
    """Draws exchanges in a row that fit into `size`, such that no other fits beside them.

    An exchange that is longer stands alone, to be cut by the row.
    """
    n = len(bounds) - 1
    spans = []
    for first in range(n):
        stop = max(bisect.bisect_right(bounds, bounds[first] + size) - 1, first + 1)
        if not spans or stop > spans[-1][1]:  # else it lies within the one before
            spans.append((first, stop))
    return slice(*_drawn(spans, n, rng))


def holds_both(
    before: Bounds, middle: Bounds, after: Bounds, cut: tuple[slice, slice, slice]
) -> bool:
    """Returns whether a joined row has a whole exchange of the dialogue and one of the unrelated talk."""
    counts = [
        sum(part.start <= a and b <= part.stop for a, b in itertools.pairwise(bounds))
        for bounds, part in zip((before, middle, after), cut, strict=True)
    ]
    return counts[1] > 0 and counts[0] + counts[2] > 0


def _some_exchanges(bounds: Bounds, size: int, rng: np.random.Generator) -> slice | None:
    """Draws how many exchanges, then which; None if not one fits."""
    n = len(bounds) - 1
    fitting = [
        [(i, i + count) for i in range(n - count + 1) if bounds[i + count] - bounds[i] <= size]
        for count in range(1, n + 1)
    ]
    fitting = [spans for spans in fitting if spans]
    if not fitting:
        return None
    first, stop = _drawn(fitting[int(rng.integers(len(fitting)))], n, rng)
    return slice(bounds[first], bounds[stop])


def _drawn(spans: Sequence[tuple[int, int]], n: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draws a span; the first and the last of n exchanges come as often as the others, as in `crop`."""
    weights = np.array([b - a if a == 0 or b == n else 1 for a, b in spans], float)
    return spans[int(rng.choice(len(spans), p=weights / weights.sum()))]


def _exchange_turns(turns: Sequence[dataset.Turn]) -> list[tuple[int, int]]:
    """Returns the turns [first, stop) of each exchange; a greeting belongs to the first one."""
    asked = [n for n, turn in enumerate(turns) if turn.speaker == "user"]
    firsts = [n for n in asked[1:] if turns[n - 1].speaker == "assistant"]
    return list(zip([0, *firsts], [*firsts, len(turns)], strict=True))
