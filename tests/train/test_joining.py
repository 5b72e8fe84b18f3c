"""Processes that wait for others to start."""

import os
import time

import pytest

from mvjax import run_folder
from mvjax.train import joining


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(joining, "_TICK", 0.02)
    monkeypatch.setattr(joining, "_REPORT", 0.04)


def wait(folder, capsys, *, index, count):
    """What a process says while it waits; a line is enough."""
    told = ""
    with joining.announced(folder, index=index, count=count, address="hosta:1234"):
        for _ in range(500):
            time.sleep(0.02)
            told += capsys.readouterr().err
            if told:
                return told
    return told


def test_those_that_have_not_come_are_named_and_no_note_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(joining.socket, "gethostname", lambda: "hostb")
    told = wait(tmp_path / "run", capsys, index=1, count=4)
    assert told.startswith("process 1 of 4: waiting for 0 s for process 0, 2, 3 of 4 to start and")
    assert "reach hosta:1234; here are: 1 (hostb)\n" in told
    assert not (tmp_path / "run").exists()


def test_the_note_of_a_killed_process_does_not_count(tmp_path, capsys):
    folder = tmp_path / run_folder.WAITING
    folder.mkdir()
    for index, age in ((0, 100), (2, -100)):  # process 2 writes its note again and again
        note = folder / f"joining-{index:05d}.txt"
        note.write_text(f"host{index}")
        os.utime(note, (time.time() - age,) * 2)
    told = wait(tmp_path, capsys, index=1, count=3)
    assert "for process 0 of 3" in told and "2 (host2)" in told


def test_the_first_of_those_who_wait_speaks(tmp_path, capsys):
    folder = tmp_path / run_folder.WAITING
    folder.mkdir()
    note = folder / "joining-00000.txt"
    note.write_text("hosta")
    os.utime(note, (time.time() + 100,) * 2)
    with joining.announced(tmp_path, index=1, count=3, address="hosta:1234"):
        time.sleep(0.3)
    assert capsys.readouterr().err == ""
