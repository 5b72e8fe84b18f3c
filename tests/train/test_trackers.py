"""Trackers: what they get, that one which fails or is slow stops nothing, and Weights & Biases offline."""

import json
import os
import struct
import subprocess
import sys
import threading
import types
from typing import Any

import jax
import pytest
import soundfile
import toy

from mvjax.config import schema
from mvjax.train import callbacks, fit, trackers, wandb_tracker


@pytest.fixture
def config(tmp_path):
    return toy.with_train(
        toy.make_config(tmp_path / "frozen", mesh=schema.MeshConfig(2, 2, 2)), steps=6, log_every=2
    )


class Recorder:
    """Keeps what it gets; fails where it is told to."""

    def __init__(self, fails=""):
        self._fails, self.calls = fails, []
        self._call("make")

    def _call(self, name, *arguments):
        if name == self._fails:
            raise OSError(f"no network in {name}")
        self.calls.append((name, *arguments))

    def log(self, step, metrics):
        self._call("log", step, metrics)

    def table(self, step, name, rows):
        self._call("table", step, name, rows)

    def close(self):
        self._call("close")


def trained(config, folder, monkeypatch, make):
    """Trains with a stand-in for Weights & Biases and an evaluation; returns the losses by step."""
    rows = [{"kind": "all", "text": 0.5}]

    def ask(step, state):
        return callbacks.Findings({"accuracy": 0.5}, {"digits/scores": rows})

    monkeypatch.setattr(fit.wandb_tracker, "Wandb", lambda run, folder: make())
    config = toy.with_train(config, trackers=("tensorboard", "wandb"))
    asked = [callbacks.Callback(every=3, call=ask)]
    with jax.numpy_dtype_promotion("standard"):
        fit.fit(config, folder, data=toy.Data(config.data), callbacks=asked)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def test_a_tracker_gets_every_logged_line_and_the_tables(config, tmp_path, quick, monkeypatch):
    made = Recorder()
    losses = trained(config, tmp_path / "run", monkeypatch, lambda: made)
    logged = [call for call in made.calls if call[0] == "log"]
    assert {step: metrics["loss"] for _, step, metrics in logged} == losses
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [{"step": step, **metrics} for _, step, metrics in logged] == list(
        map(json.loads, lines)
    )
    tables = [call[1:] for call in made.calls if call[0] == "table"]
    assert tables == [(step, "digits/scores", [{"kind": "all", "text": 0.5}]) for step in (3, 6)]
    assert made.calls[-1] == ("close",)


@pytest.mark.parametrize("where", ["make", "log", "table", "close"])
def test_one_that_fails_is_said_once_and_the_run_goes_on(
    config, tmp_path, quick, monkeypatch, capsys, where
):
    losses = trained(config, tmp_path / "run", monkeypatch, lambda: Recorder(where))
    assert list(losses) == [1, 2, 3, 4, 6] and set(losses.values()) == {2.5}
    told = capsys.readouterr().err
    assert told.count("tracker wandb is off from here on, and the run goes on: OSError") == 1
    assert f"no network in {where}" in told and "finished 6 steps" in told


@pytest.mark.parametrize("where", ["make", "log"])
def test_one_that_hangs_is_left_behind(where, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSING", 0.1)
    monkeypatch.setattr(trackers, "WAITING", 4)
    said, forever = [], threading.Event()

    class Hanging(Recorder):
        def _call(self, name, *arguments):
            if name == where:
                forever.wait()

    guarded = trackers.Guarded("slow", Hanging, say=said.append)
    guarded.log(1, {})
    guarded.close()
    assert said == [
        "tracker slow is off from here on, and the run goes on: it was not done 0 s after the run"
    ]
    forever.set()
    behind, forever = [], threading.Event()
    guarded = trackers.Guarded("slow", Hanging, say=behind.append)
    for step in range(9):
        guarded.log(step, {})
    assert len(behind) == 1 and "it is too slow: 4 calls wait" in behind[0]
    forever.set()
    guarded.close()
    assert len(behind) == 1


@pytest.fixture
def stand_in(monkeypatch):
    """A module in the place of wandb; returns what it was asked."""
    asked = types.SimpleNamespace(mode="online", logged_in=True, init=[], logged=[])
    module: Any = types.ModuleType("wandb")
    module.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=asked.mode))
    module.login = lambda prompt: asked.logged_in
    module.Settings = dict
    run = types.SimpleNamespace(
        log=lambda line, step: asked.logged.append((step, line)), finish=lambda: None
    )
    module.init = lambda **options: asked.init.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return asked


def test_it_goes_on_with_the_same_run_and_sends_no_step_twice(
    config, tmp_path, stand_in, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr(wandb_tracker.time, "monotonic", lambda: clock[0])
    killed = wandb_tracker.Wandb(config, tmp_path)
    for step in (1, 2, 3):
        killed.log(step, {"loss": 1})
        clock[0] += 6
    assert json.loads((tmp_path / "wandb.json").read_text())["step"] == 1
    resumed = wandb_tracker.Wandb(config, tmp_path)
    for step in (1, 2, 3, 4):
        resumed.log(step, {"loss": 1})
    assert [step for step, _ in stand_in.logged] == [1, 2, 3, 2, 3, 4]
    resumed.close()
    assert json.loads((tmp_path / "wandb.json").read_text())["step"] == 4
    first, second = stand_in.init
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["name"] == tmp_path.name and first["group"] is None


def test_who_is_not_logged_in_is_told_how(config, tmp_path, stand_in):
    stand_in.logged_in = False
    with pytest.raises(ValueError, match="nobody is logged in: `wandb login`"):
        wandb_tracker.Wandb(config, tmp_path)
    stand_in.mode = "offline"
    wandb_tracker.Wandb(config, tmp_path).log(1, {"loss": 1})
    assert stand_in.logged == [(1, {"loss": 1.0})]


def test_without_the_package_it_names_the_extra(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mvjax\[wandb\]'"):
        wandb_tracker.Wandb(config, tmp_path)


SESSIONS = """
import json, pathlib, sys
from mvjax.config import text
from mvjax.train import trackers, wandb_tracker

folder = pathlib.Path(sys.argv[1])
run = text.from_json(json.loads((folder / "config.json").read_text()))
for first, last in ((1, 6), (5, 9)):  # the second session resumes at step 4
    guarded = trackers.Guarded("wandb", lambda: wandb_tracker.Wandb(run, folder), say=print)
    for step in range(first, last + 1):
        if step == 6:
            sound = trackers.Sound(folder / "a.wav")
            rows = [{"said": "seven", "score": 1.0, "sound": sound}, {"said": None, "sound": None}]
            guarded.table(step, "digits/answers", rows)
        guarded.log(step, {"loss": step / 2, "gate_layers": [0.5, None], "nothing": None})
    guarded.close()
"""


@pytest.mark.slow
def test_weights_and_biases_offline(config, tmp_path):
    """A sweep's run, logged to step 6 and resumed at 4: one id, each step once, its table and its sound."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    from mvjax.train import resume

    folder = tmp_path / "sweep" / "no_gate" / "seed-0"
    resume.write_config(folder, config)
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    soundfile.write(folder / "a.wav", [[0.25, -0.25]] * 2400, 24_000)
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    env |= {"WANDB_MODE": "offline", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", SESSIONS, folder]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

    (first, second) = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    sessions = [[proto.Record.FromString(data) for data in records(p)] for p in (first, second)]
    started = [next(r.run for r in session if r.HasField("run")) for session in sessions]
    state = json.loads((folder / "wandb.json").read_text())
    assert {run.run_id for run in started} == {state["id"]} and state["step"] == 9
    assert (started[0].display_name, started[0].run_group) == ("no_gate/seed-0", "sweep")
    assert started[0].project == "mvjax"
    set_fields = {item.key: json.loads(item.value_json) for item in started[0].config.update}
    assert set_fields["train"]["steps"] == 6 and set_fields["optim"]["learning_rate"] > 0

    rows = [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in r.history.item
        }
        for session in sessions
        for r in session
        if r.HasField("history")
    ]
    assert [row["_step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [row["loss"] for row in rows] == [step / 2 for step in range(1, 10)]
    assert rows[0]["gate_layers/00"] == 0.5 and "gate_layers/01" not in rows[0]
    assert "nothing" not in rows[0]

    place = first.parent / "files"
    table = json.loads((place / rows[5]["digits/answers/path"]).read_text())
    assert table["columns"] == ["said", "score", "sound"]
    assert table["data"] == [["seven", 1.0, "a.wav"], [None, None, None]]
    print(rows[5])
    assert rows[5]["digits/answers/sounds/captions"] == ["seven | 1.0 | a.wav"]
    (sound,) = place.glob("media/audio/**/*.wav")
    clip, rate = soundfile.read(sound)
    assert rate == 24_000 and clip.shape == (2400, 2)


def records(path):
    """The records of a .wandb file: a header, then blocks of 32 KiB as of LevelDB's log."""
    data, place, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # too small for a header: filled up
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""
