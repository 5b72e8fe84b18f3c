import os

import pytest

from mvjax import files


def test_a_file_is_replaced_and_no_draft_is_left(tmp_path):
    path = tmp_path / "x.json"
    for content in (b"one", b"two"):
        files.write_atomic(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_if_the_new_one_cannot_be_written(tmp_path):
    path = tmp_path / "x.json"
    files.write_atomic(path, b"old")
    (tmp_path / f"x.json{files.DRAFT}").mkdir()  # as good as a disk that is full
    with pytest.raises(OSError):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_processes_that_share_a_file_have_drafts_of_their_own(tmp_path):
    path = tmp_path / "x.json"
    (tmp_path / f"x.json{files.DRAFT}").mkdir()  # another's
    files.write_atomic(path, b"mine", shared=True)
    assert path.read_bytes() == b"mine"
    (tmp_path / f"x.json.{os.getpid()}{files.DRAFT}").mkdir()
    with pytest.raises(OSError):
        files.write_atomic(path, b"again", shared=True)
