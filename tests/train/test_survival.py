"""Real processes, killed and resumed."""

import random
import signal

import numpy as np
import processes
import pytest
import same_state

from mvjax.train import checkpoint


def assert_same_end(first, second) -> None:
    same_state.check(*(checkpoint.newest(f / "run/checkpoints") for f in (first, second)))


def losses(folder) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in processes.metrics(folder)]


@pytest.mark.long
def test_ten_sigterms_lose_no_step_and_repeat_no_sample(tmp_path):
    steps, whole, killed = 60, tmp_path / "whole", tmp_path / "killed"
    processes.finish(processes.start(whole, "--steps", steps, "--every", 7))
    chosen = random.Random(4)
    step = 0
    for _ in range(10):
        (victim,) = processes.start(killed, "--steps", steps, "--every", 7, "--seconds", 0.3)
        processes.wait_for_step(killed, step + chosen.randint(1, 3))
        victim.send_signal(signal.SIGTERM)
        (told,) = processes.finish([victim])  # exit status 0
        step = processes.metrics(killed)[-1]["step"]
        assert f"stopped at step {checkpoint_step(killed)}, saved" in told
        assert step <= checkpoint_step(killed) < steps
    processes.finish(processes.start(killed, "--steps", steps, "--every", 7))
    assert losses(killed) == losses(whole)  # every step once, with the same loss to the bit
    assert [step for step, _ in losses(killed)] == list(range(1, steps + 1))
    assert processes.ids(killed) == processes.ids(whole)  # and every sample once
    assert_same_end(killed, whole)


def checkpoint_step(folder) -> int:
    return checkpoint.newest(folder / "run/checkpoints").metadata["step"]


@pytest.mark.slow
def test_sigkill_goes_back_to_the_last_checkpoint(tmp_path):
    processes.finish(processes.start(tmp_path / "whole"))
    killed = tmp_path / "killed"
    (victim,) = processes.start(killed, "--seconds", 1)
    processes.wait_for_step(killed, 6)
    victim.kill()
    victim.communicate()
    assert checkpoint_step(killed) == 4
    (told,) = processes.finish(processes.start(killed))
    assert "resumes at step 4" in told
    assert losses(killed) == losses(tmp_path / "whole")
    assert_same_end(killed, tmp_path / "whole")


@pytest.mark.slow
def test_one_two_and_four_processes_are_one_run(tmp_path):
    """A signal to one of two processes stops both; four, as two slices of a tensor axis each, go on."""
    mesh = ("--mesh", 1, 2, 2)
    processes.finish(processes.start(tmp_path / "one", *mesh, devices=4))
    folder = tmp_path / "several"
    two = processes.start(folder, *mesh, "--seconds", 0.7, count=2, devices=2)
    processes.wait_for_step(folder, 5)
    two[1].send_signal(signal.SIGTERM)
    told = processes.finish(two)
    stopped = checkpoint_step(folder)
    assert f"stopped at step {stopped}, saved" in told[0] and "stopped at" not in told[1]
    assert "process 1 of 2: SIGTERM: finishes its step, saves and ends" in told[1]
    assert 5 <= stopped < 12
    slices = ("--mesh", 2, 1, 2, 2)
    told = processes.finish(processes.start(folder, *slices, count=4, devices=1))
    assert f"resumes at step {stopped}; 12 steps" in told[0] and "4 processes" in told[0]
    one, several = losses(tmp_path / "one"), losses(folder)
    assert [step for step, _ in one] == [step for step, _ in several] == list(range(1, 13))
    np.testing.assert_allclose(
        [loss for _, loss in several], [loss for _, loss in one], rtol=0, atol=1e-5
    )
    rows = processes.ids(folder)
    assert {step: set(names) for step, names in rows.items()} == {
        step: set(names) for step, names in processes.ids(tmp_path / "one").items()
    }
    assert [len(rows[step]) for step in range(12)] == [12] * stopped + [24] * (12 - stopped)
