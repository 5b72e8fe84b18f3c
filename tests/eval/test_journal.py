"""Lines of answers: whole ones count, a torn one is dropped, those of other questions are not continued."""

import json

import pytest

from mvjax.eval import journal

ABOUT = {"step": 400, "protocol": {"tail": 5.0}}
LINES = [
    {"id": f"q{i}", "mode": "text", "prompt": "?", "said": "sieben" * i, "seconds": 0.1, "batch": ["q0", 4],
     "gates": None}
    for i in range(4)
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "eval" / "digits.samples.jsonl"
    with journal.Journal(path, ABOUT) as log:
        assert log.lines == [] and log.dropped == ""
        log.write(LINES[:2])
        log.write(LINES[2:])
    return path


def test_a_file_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(path):
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 11), len(whole) - 1, len(whole)):
        path.write_bytes(whole[:size])
        with journal.Journal(path, ABOUT) as log:
            assert log.lines == LINES[: whole[:size].count(b"\n")]
            log.write(LINES[len(log.lines) :])
        assert path.read_bytes() == whole


def test_a_damaged_line_is_dropped_alone(path):
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\xff\x00 not json\n" + b"".join(rest))
    with journal.Journal(path, ABOUT) as log:
        assert log.lines == LINES and log.dropped.startswith(
            "1 damaged line, asked again: line 2 ("
        )
    assert path.read_bytes() == first + b"".join(rest)


def test_answers_to_another_protocol_or_of_another_checkpoint_are_not_continued(path):
    with pytest.raises(ValueError, match=r"got another \['protocol', 'step'\]"):
        journal.Journal(path, {**ABOUT, "step": 500, "protocol": {"tail": 9.0}})
    path.with_suffix(".identity").unlink()  # nobody vouches for the lines
    with pytest.raises(ValueError, match="got another"):
        journal.Journal(path, ABOUT)
    with journal.Journal(path, ABOUT, fresh=True) as log:
        assert log.lines == [] and path.read_bytes() == b""


def test_all_may_be_asked_again(path):
    with journal.Journal(path, ABOUT, fresh=True) as log:
        assert log.lines == [] and path.read_bytes() == b""
    assert json.loads(path.with_suffix(".identity").read_text()) == ABOUT
