import numpy as np
import pytest

from mvjax.data import streams
from mvjax.data.records import record

PAD, EPAD = 3, 0


class Letters:
    """One id a letter: a is 10, b is 11, ...; a newline is 9."""

    def encode(self, text):
        return [9 if c == "\n" else 10 + ord(c) - ord("a") for c in text]


def _row(words, frames=8):
    return streams.text_stream(words, frames, Letters(), pad=PAD, epad=EPAD).tolist()


@pytest.mark.parametrize(
    ("words", "row"),
    [
        pytest.param(None, [-1] * 8, id="no transcript"),
        pytest.param([], [3] * 8, id="silence"),
        pytest.param([("ab", 0.24, 0.5)], [3, 3, 0, 10, 11, 3, 3, 3], id="epad before a word"),
        pytest.param([("ab", 0.0, 0.5)], [10, 11, 3, 3, 3, 3, 3, 3], id="at t = 0 no epad"),
        pytest.param([("a", 0.08, 0.16)], [0, 10, 3, 3, 3, 3, 3, 3], id="epad at t = 0"),
        pytest.param([("a", 0.159, 0.2)], [0, 10, 3, 3, 3, 3, 3, 3], id="start within frame 1"),
        pytest.param([("a", 0.16, 0.2)], [3, 0, 10, 3, 3, 3, 3, 3], id="start at the frame edge"),
        pytest.param(
            [("ab", 0.08, 0.2), ("c", 0.24, 0.4)], [0, 10, 11, 12, 3, 3, 3, 3], id="back to back"
        ),
        pytest.param(
            [("ab", 0.08, 0.2), ("c", 0.32, 0.4)], [0, 10, 11, 0, 12, 3, 3, 3], id="one frame apart"
        ),
        pytest.param(
            [("abcd", 0.08, 0.2), ("e", 0.24, 0.4)],
            [0, 10, 11, 14, 3, 3, 3, 3],
            id="tokens that do not fit are dropped",
        ),
        pytest.param(
            [("a", 0.09, 0.11), ("bc", 0.12, 0.4)],
            [0, 11, 12, 3, 3, 3, 3, 3],
            id="two in one frame: the later wins",
        ),
        pytest.param(
            [("b", 0.4, 0.5), ("a", 0.1, 0.3)], [0, 10, 3, 3, 0, 11, 3, 3], id="sorted by start"
        ),
        pytest.param(
            [("a", 0.1, 0.5), ("b", 0.3, 0.4)], [0, 10, 0, 11, 3, 3, 3, 3], id="overlapping words"
        ),
        pytest.param(
            [("a", 0.1, 0.1), ("b", 0.4, 0.3)], [3] * 8, id="no positive duration: dropped"
        ),
        pytest.param([("abc", 0.5, 0.9)], [3, 3, 3, 3, 3, 0, 10, 11], id="cut at the end"),
        pytest.param([("a", 0.7, 0.9)], [3] * 8, id="after the end"),
        pytest.param([(" a\nb ", 0.1, 0.9)], [0, 10, 9, 11, 3, 3, 3, 3], id="newline piece"),
    ],
)
def test_text_stream(words, row):
    assert _row(None if words is None else [record.Word(*w) for w in words]) == row


def test_speechless_row():
    turns = [
        record.Turn("assistant", "hi"),
        record.Turn("user", "a b"),
        record.Turn("assistant", "cd"),
        record.Turn("user", "e"),
        record.Turn("assistant", "f g"),
    ]
    ids, mask = streams.speechless_row(turns, Letters(), 18)
    h, i, a, b, c, d, e, f, g = Letters().encode("hiabcdefg")
    assert ids.tolist() == [h, i, 1, a, b, 2, c, d, 1, e, 2, f, g, 1, -1, -1, -1, -1]
    expected = [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert mask.tolist() == [bool(m) for m in expected]
    cut, cut_mask = streams.speechless_row(turns, Letters(), 7)
    np.testing.assert_array_equal(cut, ids[:7])
    np.testing.assert_array_equal(cut_mask, mask[:7])
    assert cut.dtype == np.int32 and cut_mask.dtype == bool


def test_speechless_bos_counts_only_after_the_assistant():
    ids, mask = streams.speechless_row(
        [record.Turn("user", "a"), record.Turn("user", "b")], Letters(), 8
    )
    assert ids.tolist() == [1, 10, 2, 1, 11, 2, 1, -1]
    assert not mask.any()


def test_prompt_ends_where_the_answer_starts():
    turns = [record.Turn("user", "a"), record.Turn("assistant", "b"), record.Turn("user", "c")]
    assert streams.prompt(turns, Letters()) == [1, 10, 2, 11, 1, 12, 2]
    assert streams.prompt(turns[:2], Letters()) == [1, 10, 2]
