"""Windows of dialogues: every part is seen, and `p_concat` means what it says."""

import numpy as np
import pytest

from mvjax.data import windows
from mvjax.data.records import dataset


def turns(*speakers):
    return tuple(dataset.Turn({"u": "user", "a": "assistant"}[s], "one two") for s in speakers)


def spoken(said, ends, *, frames=100):
    words = tuple(dataset.Word("w", end - 0.1, end) for end in ends)
    codes = dataset.encode_codes(np.zeros((2, frames), np.uint16))
    return dataset.Record(
        "id", (), said, words=words, codes=codes, codebooks=2, seconds=frames * 0.08
    )


def test_exchanges_end_behind_their_answers():
    record = spoken(turns("a", "u", "a", "u", "a"), [0.3, 0.5, 2.0, 2.4, 4.0, 5.0])
    assert windows.spoken_exchanges(record) == [0, 32, 64]  # the greeting belongs to the first
    assert windows.spoken_exchanges(spoken(turns("u", "a"), [1.0])) == [0, 14]  # another count
    assert windows.spoken_exchanges(spoken(turns("a", "u"), [1.0, 2.0])) == [0, 100]  # asked last
    bounds, spans = windows.written_exchanges(turns("u", "u", "a", "u", "a"), [3, 4, 5, 6, 7])
    assert bounds == [0, 12, 25] and spans == [(0, 3), (3, 5)]


def test_start_and_end_are_seen_as_often_as_the_middle():
    rng, length, size = np.random.default_rng(0), 500, 100
    seen = np.zeros(length)
    for _ in range(20_000):
        window = windows.crop(length, size, rng)
        assert window.stop - window.start == size
        seen[window] += 1 / 20_000
    want = size / (length + size - 1)
    np.testing.assert_allclose(seen[[0, -1]], want, rtol=0.05)
    np.testing.assert_allclose(seen[size : length - size], want, rtol=0.05)
    assert seen.min() > 0.95 * want
    assert windows.crop(7, 100, rng) == slice(0, 7)


def test_written_windows_hold_whole_exchanges_and_every_one_of_them():
    rng = np.random.default_rng(0)
    bounds = list(range(0, 110, 10))
    seen = np.zeros(10)
    for _ in range(6000):
        window = windows.whole(bounds, 32, rng)
        assert window.stop - window.start == 3
        seen[window] += 1 / 6000
    np.testing.assert_allclose(seen[[0, -1, 4, 5]], 0.25, atol=0.03)
    assert seen.min() > 0.22
    assert windows.whole(bounds, 100, rng) == slice(0, 10)
    assert windows.whole([0, 50], 32, rng) == slice(0, 1)  # longer than the row: cut by it


def dialogue(rng, exchanges, question, answer):
    """Bounds of a dialogue, from the ranges of its frames."""
    sizes = rng.integers(*question, exchanges) + rng.integers(*answer, exchanges)
    return [0, *np.cumsum(sizes).tolist()]


WORLDS = {  # frames of a row, p_concat, exchanges; frames of questions, of answers: of each kind of talk
    # experiments/digits.py: measured on its records (docs/training.md)
    "digits": (112, 0.25, (1, 4), (18, 34), (8, 22)),
    # experiments/moshika_vis.py: eight exchanges, answers of 30 words at 2.5 words a second
    "moshika_vis": (1250, 0.5, (8, 9), (25, 60), (120, 180)),
}


@pytest.mark.parametrize("world", WORLDS)
def test_p_concat_is_the_share_of_rows_with_an_exchange_of_each(world):
    size, p_concat, exchanges, question, answer = WORLDS[world]
    rng = np.random.default_rng(0)
    held, before, after, padded, rows = 0, 0, 0, 0, 10_000
    for _ in range(rows):
        if rng.random() >= p_concat:
            continue
        talk = [dialogue(rng, rng.integers(*exchanges), question, answer) for _ in range(3)]
        cut = windows.join(*talk, size=size, rng=rng)
        lengths = [part.stop - part.start for part in cut]
        assert sum(lengths) <= size
        held += windows.holds_both(*talk, cut)
        before, after = before + lengths[0], after + lengths[2]
        padded += size - sum(lengths)
    assert abs(held / rows - p_concat) < 0.02
    assert 0.9 < before / after < 1.1  # neither side is starved


def test_dialogues_without_known_exchanges_are_cut_within_them():
    rng = np.random.default_rng(0)
    for _ in range(100):
        cut = windows.join([0, 300], [0, 300], [0, 300], size=100, rng=rng)
        lengths = [part.stop - part.start for part in cut]
        assert sum(lengths) == 100 and lengths[1] == 50
