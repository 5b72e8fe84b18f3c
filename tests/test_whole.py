import os

import pytest

from mvjax import whole


def test_a_file_is_replaced_and_no_draft_is_left(tmp_path):
    path = tmp_path / "x.json"
    for content in (b"one", b"two"):
        whole.write(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_if_the_new_one_cannot_be_written(tmp_path):
    path = tmp_path / "x.json"
    whole.write(path, b"old")
    (tmp_path / f"x.json{whole.DRAFT}").mkdir()  # as good as a disk that is full
    with pytest.raises(OSError):
        whole.write(path, b"new")
    assert path.read_bytes() == b"old"


def test_processes_that_share_a_file_have_drafts_of_their_own(tmp_path):
    path = tmp_path / "x.json"
    (tmp_path / f"x.json{whole.DRAFT}").mkdir()  # another's
    whole.write(path, b"mine", shared=True)
    assert path.read_bytes() == b"mine"
    (tmp_path / f"x.json.{os.getpid()}{whole.DRAFT}").mkdir()
    with pytest.raises(OSError):
        whole.write(path, b"again", shared=True)
