import contextlib
import io
import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from tensorboardX.proto import event_pb2

from mvjax import run_folder
from mvjax.config import schema
from mvjax.train import flops, phases, runlog, trackers


def open_log(folder, *, step=0, peak=None, quiet=True, others=None):
    throughput = flops.Throughput(frames=30, model_flops=60.0, peak_flops=peak)
    settings = schema.TrainConfig(steps=9, log_every=2)
    return runlog.RunLog(
        folder, step=step, settings=settings, throughput=throughput, others=others, quiet=quiet
    )


def push(log, step, loss, **others):
    return log.push(step, {"loss": jnp.float32(loss), "skipped": jnp.int32(0), **others})


def lines(folder):
    return [json.loads(line) for line in (folder / run_folder.METRICS).read_text().splitlines()]


def test_due_steps_are_written_one_step_late(tmp_path):
    with open_log(tmp_path) as log:
        assert push(log, 1, 5.0) is None
        assert lines(tmp_path) == []
        done = [push(log, step, 5.0 - step) for step in (2, 3, 4)]
        assert [one.step for one in done] == [1, 2, 3]
        assert float(done[1].metrics["loss"]) == 3
        assert [line["step"] for line in lines(tmp_path)] == [1, 2]
        assert log.finish_step().step == 4 and log.finish_step() is None
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 5), (2, 3), (4, 1)]
    assert log.last == lines(tmp_path)[-1]


def test_speed_and_utilization(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(phases.time, "monotonic", lambda: now)
    with open_log(tmp_path, peak=40.0) as log:
        for step, seconds in ((1, 60.0), (2, 2.0), (3, 4.0)):
            push(log, step, 1.0)
            now += seconds
            log.finish_step()
            with log.timer.phase("checkpoint"):
                now += 1.0
        push(log, 4, 1.0)
        log.finish_step()
    # steps 2 and 3, and 4, which took no time after the checkpoint before it
    assert [step["step"] for step in log.timer._recent] == [2.0, 4.0, 0.0]
    first, last = lines(tmp_path)[0], lines(tmp_path)[-1]
    assert first["frames_per_second"] is None and first["model_flop_utilization"] is None
    assert (last["seconds_step"], last["seconds_checkpoint"], last["seconds_data"]) == (2, 1, 0)
    assert last["seconds_callbacks"] == 0 and first["seconds_callbacks"] is None
    assert last["seconds_per_step"] == 3
    assert last["frames_per_second"] == log.frames_per_second == 30 / 3
    assert last["model_flop_utilization"] == 60 / (3 * 40)
    assert last["host_memory_gb"] > 0 and last["device_memory_gb"] is None


def test_a_number_that_is_not_finite_is_null(tmp_path):
    with open_log(tmp_path) as log:
        push(log, 1, math.nan)
        log.finish_step()
    assert lines(tmp_path)[0]["loss"] is None


def test_a_metric_by_layer_is_a_list_and_a_curve_each(tmp_path):
    with open_log(tmp_path) as log:
        push(log, 1, 2.5, gate_layers=jnp.float32([0.25, math.inf, 0.5]))
        log.finish_step()
    assert lines(tmp_path)[0]["gate_layers"] == [0.25, None, 0.5]
    scalars = events(tmp_path)[1]
    assert scalars["gate_layers/00"] == 0.25 and scalars["gate_layers/02"] == 0.5
    assert "gate_layers/01" not in scalars and scalars["loss"] == 2.5


def test_metrics_of_callbacks_join_those_of_their_step_and_have_it_logged(tmp_path, capsys):
    with open_log(tmp_path, quiet=False) as log:
        push(log, 3, 2.5)
        log.add("ask", {"accuracy": 0.75, "by_kind": [0.5, 1.0]})
        push(log, 5, 2.5)
        log.finish_step()
    (line,) = lines(tmp_path)
    assert (line["step"], line["loss"], line["accuracy"]) == (3, 2.5, 0.75)
    assert line["by_kind"] == [0.5, 1] and "  accuracy 0.75" in capsys.readouterr().err
    scalars = events(tmp_path)[3]
    assert scalars["accuracy"] == 0.75 and scalars["by_kind/01"] == 1


def test_tables_of_callbacks_are_text_and_sound_in_tensorboard(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full((240, 2), 0.5), 24_000)
    rows = [
        {"said": "a|b", "score": 0.12345, "sound": trackers.Sound(tmp_path / "a.wav")},
        {"said": None, "sound": trackers.Sound(tmp_path / "gone.wav")},
    ]
    with open_log(tmp_path) as log:
        push(log, 3, 2.5)
        log.add("ask", {}, {"digits/answers": rows})
    (path,) = (tmp_path / "tensorboard").iterdir()
    shown = [(e.step, v) for e in records(path) for v in e.summary.value]
    (step, text), (_, sound) = shown
    assert step == 3 and text.tag.startswith("digits/answers")
    assert text.tensor.string_val[0].decode().splitlines() == [
        "| said | score | sound |",
        "| --- | --- | --- |",
        "| a\\|b | 0.1235 | a.wav |",
        "|  |  | gone.wav |",
    ]
    assert sound.tag == "digits/answers/a" and sound.audio.sample_rate == 24_000
    clip, _ = soundfile.read(io.BytesIO(sound.audio.encoded_audio_string))
    assert clip.shape == (240, 2)


def test_tensorboard_may_be_left_out(tmp_path):
    settings = schema.TrainConfig(steps=9, log_every=2, trackers=())
    throughput = flops.Throughput(frames=30, model_flops=60.0, peak_flops=None)
    with runlog.RunLog(tmp_path, step=0, settings=settings, throughput=throughput, quiet=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.METRICS]


def test_metrics_of_callbacks_that_cannot_be_logged_are_all_named(tmp_path):
    with open_log(tmp_path) as log:
        push(log, 1, 2.5)
        log.add("first", {"accuracy": 1})
        bad = {"accuracy": 1, "loss": 1, "seconds_data": 1, "said": "two", "step": 1, "fine": 1}
        with pytest.raises(ValueError, match="metrics of callback second") as error:
            log.add("second", bad)
        assert "said: expected a number or a list of numbers, got 'two'" in str(error.value)
        for name in ("accuracy", "loss", "seconds_data", "step"):
            assert f"{name}: the name is taken" in str(error.value)
        assert "fine" not in str(error.value)


def test_reopening_drops_later_lines_and_half_lines(tmp_path):
    (tmp_path / run_folder.METRICS).write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    with open_log(tmp_path, step=4) as log:
        assert log.last == {"step": 4}
    assert lines(tmp_path) == [{"step": 2}, {"step": 4}]


def test_damaged_lines_are_named_and_set_aside(tmp_path, capsys):
    bad = [
        b'{"step": 3, "loss": "\xff"}',
        b'{"loss": 2}',
        b"[1]",
        b'{"step": "4"}',
        b"[" * 5000,
        b"",
    ]
    good = [b'{"step": 2}', b'{"step": 4, "loss": 1}']
    text = b"\n".join([good[0], *bad, good[1], b'{"st'])
    (tmp_path / run_folder.METRICS).write_bytes(text)
    with open_log(tmp_path, step=4, quiet=False) as log:
        assert log.last == {"step": 4, "loss": 1}
    assert (tmp_path / run_folder.METRICS).read_bytes() == b"\n".join([*good, b""])
    assert (tmp_path / run_folder.DAMAGED_METRICS).read_bytes() == b"\n".join([*bad, b""])
    told = capsys.readouterr().err
    assert f"{tmp_path / run_folder.METRICS}: 6 damaged lines, moved to" in told
    assert "line 2: 'utf-8' codec can't decode byte 0xff" in told
    assert 'line 3: expected an object with a whole number "step"' in told
    with open_log(tmp_path, step=4, quiet=False):
        assert capsys.readouterr().err == ""


def test_without_a_terminal_each_due_step_is_a_line(tmp_path, capsys):
    with open_log(tmp_path, quiet=False) as log:
        log.say("new run")
        for step in (1, 2, 3):
            push(log, step, 2.5)
        log.finish_step()
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "new run" and shown[1].startswith("step 1/9  loss 2.5000  ")
    assert shown[2].startswith("step 2/9  loss 2.5000  ") and shown[2].endswith(" left")
    assert "frames/s" in shown[2] and " GB" in shown[2] and len(shown) == 3


@pytest.mark.parametrize(
    ("columns", "shown"), [(80, "frames/s"), (60, "loss 5.0000  "), (200, "GB")]
)
def test_the_progress_line_keeps_the_time_left(tmp_path, monkeypatch, columns, shown):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    settings = schema.TrainConfig(steps=50_000, log_every=2)
    throughput = flops.Throughput(frames=30_000, model_flops=60.0, peak_flops=40.0)
    log = runlog.RunLog(tmp_path, step=12_000, settings=settings, throughput=throughput)
    with contextlib.ExitStack() as stack:
        stack.callback(log.__exit__)
        for step in (12_001, 12_002, 12_004):
            push(log, step, 5.0)
        log.finish_step()
    text = log._bar.tasks[0].description
    assert text.startswith("step 12004/50000  loss 5.0000") and text.endswith(" left")
    assert shown in text and len(text) + runlog._BAR < columns
    with log._console.capture() as captured:
        log._console.print(log._bar.get_renderable())
    (line,) = captured.get().splitlines()
    assert " left" in line


@pytest.mark.parametrize("index", [1, 2])
def test_only_the_first_process_writes_files(tmp_path, monkeypatch, capsys, index):
    for module in (runlog.jax, runlog.distributed.jax):
        monkeypatch.setattr(module, "process_index", lambda: index)
        monkeypatch.setattr(module, "process_count", lambda: 3)
    with open_log(
        tmp_path, quiet=False, others={"never": lambda: (tmp_path / "made").touch()}
    ) as log:
        log.say("new run")
        log.warn("slow disk")
        push(log, 1, 2.5)
        log.finish_step()
    assert capsys.readouterr().err == f"process {index} of 3: slow disk\n"
    assert list(tmp_path.iterdir()) == [] and log.last["loss"] == 2.5


def test_a_full_disk_stops_no_training_and_loses_no_line(tmp_path, capsys):
    with open_log(tmp_path, quiet=False) as log:
        good = log._trackers[0]._file
        with open("/dev/full", "ab", buffering=0) as full:
            log._trackers[0]._file = full
            for step in (2, 4):
                push(log, step, 1.0)
                log.finish_step()
        log._trackers[0]._file = good
        push(log, 6, 1.0)
        log.finish_step()
    told = capsys.readouterr().err
    assert "cannot write the metrics of step 2" in told and "2 lines wait" in told
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]


def test_half_a_line_is_taken_back(tmp_path):
    with open_log(tmp_path) as log:
        files = log._trackers[0]
        push(log, 2, 1.0)
        log.finish_step()

        class Short:
            def __init__(self, file):
                self._file = file

            def write(self, data):
                return self._file.write(data[:10])

            def __getattr__(self, name):
                return getattr(self._file, name)

        files._file = Short(files._file)
        push(log, 4, 1.0)
        log.finish_step()
        assert [line["step"] for line in lines(tmp_path)] == [2]
        files._file = files._file._file
        push(log, 6, 1.0)
        log.finish_step()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]


def test_later_events_of_an_earlier_session_are_undone(tmp_path):
    with open_log(tmp_path, step=4):
        pass
    (path,) = (tmp_path / "tensorboard").iterdir()
    start = records(path)[1]
    assert start.session_log.status == event_pb2.SessionLog.START and start.step == 5


def test_after_a_rollback_no_later_event_is_left(tmp_path):
    with open_log(tmp_path) as log:
        for step in (2, 4, 6):
            push(log, step, step)
            log.finish_step()
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes() + b"\x40" + bytes(20))  # cut short by a kill
    with open_log(tmp_path, step=4) as log:
        push(log, 6, 0.5)
        log.finish_step()
    assert path.exists()
    found = [record for path in (tmp_path / "tensorboard").iterdir() for record in records(path)]
    losses = {(e.step, v.simple_value) for e in found for v in e.summary.value if v.tag == "loss"}
    assert losses == {(2, 2), (4, 4), (6, 0.5)}


def records(path):
    """The events of a file: length, its checksum, the event, its checksum, and so on."""
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def events(folder):
    (path,) = (folder / "tensorboard").iterdir()
    return {
        event.step: {value.tag: value.simple_value for value in event.summary.value}
        for event in records(path)
        if event.summary.value
    }
