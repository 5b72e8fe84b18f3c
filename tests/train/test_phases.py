"""Step times by phase and the watchdog; on a clock of the tests, so that no speed of the machine matters."""

import threading

import pytest

from mvjax import run_folder
from mvjax.train import phases


class Clock:
    """A clock that only `pass_` moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(phases.time, "monotonic", clock)
    return clock


def watch(folder, said, *, seconds=8.0, **options):
    """A watchdog whose thread has not been started."""
    return phases.Watchdog(folder, seconds=seconds, say=said.append, **options)


def test_seconds_per_step_by_phase(clock):
    timer = phases.StepTimer()

    def step(data, devices, callbacks, checkpoint):
        seconds = {"data": data, "step": devices, "callbacks": callbacks, "checkpoint": checkpoint}
        for phase, duration in seconds.items():
            with timer.phase(phase):
                clock.pass_(duration / 2)
            with timer.phase(phase):
                clock.pass_(duration / 2)
        timer.end_step()

    assert timer.seconds == {}
    step(1.0, 60.0, 0.0, 0.0)  # mostly compilation
    assert timer.seconds == {}
    step(0.5, 2.0, 0.0, 0.0)
    clock.pass_(0.25)  # outside of any phase, so the step's
    step(0.25, 3.75, 5.0, 1.0)
    assert timer.seconds == {"data": 0.375, "step": 3.0, "callbacks": 2.5, "checkpoint": 0.5}
    assert sum(timer.seconds.values()) == 6.375


def test_a_phase_is_timed_and_watched(tmp_path, clock):
    said, timer = [], phases.StepTimer()
    watchdog = watch(tmp_path, said)
    timer.end_step()
    with phases.Phases(timer, watchdog)("data", "the data of step 7"):
        clock.pass_(10)
        watchdog.check()
    timer.end_step()
    assert timer.seconds["data"] == 10 and timer.seconds["step"] == 0
    assert said == [
        "10 s without a step: waiting for the data of step 7",
        "the data of step 7: done after 10 s",
    ]


def test_a_long_wait_is_reported_after_its_time_and_then_at_twice_the_wait(tmp_path, clock):
    said = []
    watchdog = watch(tmp_path, said)
    watchdog.check()  # nothing to wait for
    with watchdog.task("the data of step 3"):
        clock.pass_(7.9)
        watchdog.check()
    assert said == []
    with watchdog.task("the data of step 4"):
        for _ in range(40):
            clock.pass_(1)
            watchdog.check()
    waits = [int(text.split()[0]) for text in said[:-1]]
    assert waits == [8, 16, 32]
    assert said[-1] == "the data of step 4: done after 40 s"


def test_of_several_processes_a_step_that_takes_long_is_reported_soon(tmp_path, clock, monkeypatch):
    said, timer = [], phases.StepTimer()
    watchdog = watch(tmp_path, said, seconds=300.0)
    monkeypatch.setattr(watchdog, "_report", said.append)
    phase = phases.Phases(timer, watchdog)
    monkeypatch.setattr(phases.jax, "process_count", lambda: 2)
    with phase("step", phases.COMPILATION):
        clock.pass_(100)
        watchdog.check()
    timer.end_step()
    with phase("step", "the devices to do step 1"):
        clock.pass_(phases.SOON + 1)
        watchdog.check()
    timer.end_step()
    assert said.pop(0).endswith("waiting for the devices to do step 1") and len(said) == 1
    with phase("step", "the devices to do step 2"):
        clock.pass_(20)  # below three times the mean step of 7 s
        watchdog.check()
    assert len(said) == 1 and "done after" in said[0]


def test_a_task_that_fails_is_not_reported_as_done_or_as_waiting(tmp_path, clock):
    said = []
    watchdog = watch(tmp_path, said)
    with pytest.raises(OSError), watchdog.task("the data of step 3"):
        clock.pass_(9)
        watchdog.check()
        raise OSError
    clock.pass_(100)
    watchdog.check()
    assert said == ["9 s without a step: waiting for the data of step 3"]


def test_stacks_show_where_every_thread_is(tmp_path, clock, capfd):
    watchdog = watch(tmp_path, [], stacks=True)
    with watchdog.task("the data of step 4"):
        clock.pass_(9)
        watchdog.check()
    assert "test_phases.py" in capfd.readouterr().err


def test_the_thread_checks_while_the_training_thread_waits(tmp_path):
    reported, said = threading.Event(), []

    def say(text):
        said.append(text)
        reported.set()

    stale = tmp_path / run_folder.WAITING / "00000.txt"
    stale.parent.mkdir()
    stale.write_text("left by a killed session")
    with phases.Watchdog(tmp_path, seconds=0.01, say=say) as watchdog:
        assert not stale.exists()
        with watchdog.task("the data of step 4"):
            assert reported.wait(timeout=300)
    assert said[0].endswith("s without a step: waiting for the data of step 4")
    assert said[-1].startswith("the data of step 4: done after")
    assert not watchdog._thread.is_alive() and list(stale.parent.iterdir()) == []


def test_of_several_processes_the_first_prints_what_each_is_blocked_on(
    tmp_path, clock, monkeypatch
):
    said = []
    monkeypatch.setattr(phases.jax, "process_count", lambda: 3)
    (tmp_path / run_folder.WAITING).mkdir()
    own, other = (tmp_path / run_folder.WAITING / f"0000{i}.txt" for i in (0, 1))
    other.write_text("process 1 of 3 (b): 9 s without a step: waiting for the data of step 4")
    watchdog = watch(tmp_path, said, seconds=0.01)
    watchdog._hosts = ["a", "b", "c"]
    with watchdog.task("the devices to do step 4"):
        clock.pass_(9)
        watchdog.check()
        assert own.exists()
    lines = said[0].splitlines()
    assert lines[0].startswith(
        "no step for long, because of process 1 of 3 (b), process 2 (c); what"
    )
    assert lines[1].strip() == other.read_text()
    assert lines[2].startswith("  process 2 (c): nothing")
    assert lines[3].startswith("  process 0 of 3 (") and lines[3].endswith("devices to do step 4")
    assert not own.exists()
