import os
import signal
import subprocess
import sys

import pytest

from mvjax import locks, run_folder
from mvjax.train import lock

HOLD = """
import os, sys, time
from pathlib import Path
from mvjax.train import lock
with lock.held(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "metrics.jsonl").touch()
    if os.fork() == 0:
        time.sleep(300)
    print("held", flush=True)
    time.sleep(300)
"""


def test_the_second_is_refused_by_the_name_of_the_first_until_that_is_dead(tmp_path):
    folder = tmp_path / "runs" / "a"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert first.stdout.readline() == b"held\n"
        message = f"{folder}: another run .*process {first.pid} on "
        with pytest.raises(ValueError, match=message), lock.held(folder):
            pass
        first.kill()  # its child lives on
        first.wait()
        assert (folder / run_folder.LOCK).exists()
        with lock.held(folder):
            assert f"process {os.getpid()} on" in (folder / run_folder.LOCK).read_text()
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.stdout.close()
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_a_folder_into_which_nothing_came_is_removed(tmp_path):
    with pytest.raises(KeyError), lock.held(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_locks_nothing(tmp_path, monkeypatch):
    def lockf(file, how):
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)
    with lock.held(tmp_path / "run"):
        assert (tmp_path / "run" / run_folder.LOCK).exists()
