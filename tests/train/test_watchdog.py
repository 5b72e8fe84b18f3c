import time

from mvjax.train import watchdog


def test_a_long_wait_is_named_and_its_end_too(tmp_path, capfd):
    said = []
    with watchdog.Watchdog(tmp_path, seconds=0.2, say=said.append, stacks=True) as dog:
        with dog.waiting("the data of step 3"):
            time.sleep(0.02)
        assert said == []
        with dog.waiting("the data of step 4"):
            time.sleep(1.0)
    assert "without a step: waiting for the data of step 4" in said[0]
    assert said[-1].startswith("the data of step 4: done after 1 s")
    assert 3 <= len(said) <= 4  # at 0.2, about 0.4 and 0.8 s
    assert "test_watchdog.py" in capfd.readouterr().err  # where every thread stands
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_the_first_tells_what_each_waits_for(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(watchdog.jax, "process_count", lambda: 3)
    (tmp_path / watchdog.WAITING).mkdir()
    other = tmp_path / watchdog.WAITING / "00001.txt"
    other.write_text("process 1 of 3 (b): 9 s without a step: waiting for the data of step 4")
    (other.parent / "00000.txt").write_text("left by a killed session")
    dog = watchdog.Watchdog(tmp_path, seconds=0.2, say=said.append)
    with dog, dog.waiting("the devices to do step 4"):
        time.sleep(0.7)
    lines = said[0].splitlines()
    assert lines[1].startswith("  process 0 of 3 (") and lines[1].endswith("devices to do step 4")
    assert lines[2].strip() == other.read_text()
    assert lines[3].startswith("  process 2: nothing")
    assert not (tmp_path / watchdog.WAITING / "00000.txt").exists()
