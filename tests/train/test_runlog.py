import json
import math

import jax.numpy as jnp
import pytest

from mvjax.train import runlog


def open_log(folder, *, step=0, quiet=True):
    return runlog.RunLog(folder, step=step, steps=9, every=2, frames_per_step=30, quiet=quiet)


def push(log, step, loss):
    log.push(step, {"loss": jnp.float32(loss), "skipped": jnp.int32(0)})


def lines(folder):
    return [json.loads(line) for line in (folder / runlog.METRICS).read_text().splitlines()]


def test_due_steps_are_written_one_step_late(tmp_path):
    with open_log(tmp_path) as log:
        push(log, 1, 5.0)
        assert lines(tmp_path) == []
        for step in (2, 3, 4):
            push(log, step, 5.0 - step)
        assert [line["step"] for line in lines(tmp_path)] == [1, 2]
        log.settle()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 5), (2, 3), (4, 1)]
    assert log.last == lines(tmp_path)[-1]


def test_speed_leaves_out_compilation_and_pauses(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now)
    with open_log(tmp_path) as log:
        for step, seconds in ((1, 60.0), (2, 2.0), (3, 4.0)):
            push(log, step, 1.0)
            now += seconds
            with log.pause():  # such as a checkpoint
                now += 1000.0
        assert log.seconds_per_step == 3.0
        assert log.frames_per_second == 10.0
    assert lines(tmp_path)[0]["frames_per_second"] is None


def test_a_number_that_is_not_finite_is_null(tmp_path):
    with open_log(tmp_path) as log:
        push(log, 1, math.nan)
        log.settle()
    assert lines(tmp_path)[0]["loss"] is None


def test_reopening_drops_later_lines_and_half_lines(tmp_path):
    (tmp_path / runlog.METRICS).write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    with open_log(tmp_path, step=4) as log:
        assert log.last == {"step": 4}
    assert lines(tmp_path) == [{"step": 2}, {"step": 4}]


def test_without_a_terminal_each_due_step_is_a_line(tmp_path, capsys):
    with open_log(tmp_path, quiet=False) as log:
        log.say("new run")
        for step in (1, 2, 3):
            push(log, step, 2.5)
        log.settle()
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "new run" and shown[1] == "step 1/9  loss 2.5000"
    assert shown[2].startswith("step 2/9  loss 2.5000  ") and shown[2].endswith(" left")
    assert "frames/s" in shown[2] and len(shown) == 3


def test_metrics_that_cannot_be_written_name_the_remedy(tmp_path):
    log = open_log(tmp_path)
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(ValueError, match="cannot write the metrics of step 1") as error, log:
        push(log, 1, 1.0)
        log.settle()
    assert "run the same command to resume" in str(error.value)
