"""Lines of answers: whole ones count, a torn one is dropped, those of other questions are not continued."""

import json

import pytest

from mvjax.eval import journal

ABOUT = {"step": 400, "protocol": {"tail": 5.0}}
LINES = [{"id": f"q{i}", "mode": "text", "said": "sieben" * i} for i in range(4)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "eval" / "digits.samples.jsonl"
    with journal.Journal(path, ABOUT) as log:
        assert log.lines == [] and log.differs == []
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


def test_a_damaged_line_ends_what_counts(path):
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\xff\x00 not json\n" + b"".join(rest))
    with journal.Journal(path, ABOUT) as log:
        assert log.lines == LINES[:1]


def test_answers_to_another_protocol_or_of_another_checkpoint_are_not_continued(path):
    with journal.Journal(path, {**ABOUT, "step": 500, "protocol": {"tail": 9.0}}) as log:
        assert log.lines == [] and log.differs == ["protocol", "step"]
        log.write(LINES[:1])
    with journal.Journal(path, ABOUT) as log:
        assert log.lines == []
        log.write(LINES)
    path.with_suffix(".identity").unlink()  # nobody vouches for the lines
    with journal.Journal(path, ABOUT) as log:
        assert log.lines == []


def test_all_may_be_asked_again(path):
    with journal.Journal(path, ABOUT, fresh=True) as log:
        assert log.lines == [] and path.read_bytes() == b""
    assert json.loads(path.with_suffix(".identity").read_text()) == ABOUT
