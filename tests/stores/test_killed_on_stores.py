"""Runs whose folder, records and frozen weights are on a store, killed at random moments and resumed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import forking
import numpy as np
import processes
import pytest
import same_state
import tiny_sweep

from mvjax import files
from mvjax.data.records import publishing
from mvjax.stores import objects, work
from mvjax.train import checkpoint, run_store


class Runs:
    """Starts `mvjax` in forks."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        environment = tiny_sweep.environment() | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "MVJAX_PUSH_SECONDS": "1000",  # what is there came with a checkpoint, or at the end
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", forking.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def start(self, *words: object) -> int:
        self.log.write_text("")
        self._process.stdin.write(json.dumps([str(self.log), *map(str, words)]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Waits; returns the status and what was printed."""
        return int(self._process.stdout.readline()), self.log.read_text()

    def finish(self, *words: object) -> str:
        """Runs to the end, which is good; returns what was printed."""
        self.start(*words)
        status, told = self.end()
        assert status == 0, told
        return told

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def runs(tmp_path):
    started = Runs(tmp_path)
    with contextlib.closing(started):
        yield started


@pytest.fixture
def experiment(url, tmp_path):
    """What `mvjax train` is told: everything that a run reads is on the store."""
    tiny_sweep.make(tmp_path / "tiny")
    base = tmp_path / "tiny" / "base.json"
    for name in ("moshi.safetensors", "siglip.npz"):
        objects.upload(tmp_path / "tiny" / name, f"{url}/frozen/{name}")
    with publishing.published(files.output(f"{url}/records")) as root:
        for path in (tmp_path / "tiny" / "records").iterdir():
            (root / path.name).write_bytes(path.read_bytes())
    settings = {
        "data.root": f"{url}/records",
        "frozen.moshi": f"{url}/frozen/moshi.safetensors",
        "frozen.siglip": f"{url}/frozen/siglip.npz",
        "train.checkpoint_every": 2,
        "data.workers": 2,
    }
    return ["train", base, *(w for k, v in settings.items() for w in ("--set", f"{k}={v}"))]


def lines(run: str) -> list[dict]:
    content = objects.read(f"{run}/metrics.jsonl").decode().rpartition("\n")[0]
    return [json.loads(line) for line in content.splitlines()]


def committed(run: str) -> list[int]:
    names = objects.below(f"{run}/checkpoints")
    return sorted(int(n.partition("/")[0]) for n in names if n.endswith("/hashes.json"))


def strays(run: str) -> set[str]:
    """Objects of checkpoints that no list of hashes names."""
    root = f"{run}/checkpoints"
    names = set(objects.below(root))
    for name in [name for name in names if name.endswith("/hashes.json")]:
        step = name.partition("/")[0]
        listed = json.loads(objects.read(f"{root}/{name}"))["files"]
        names -= {name, *(f"{step}/{file}" for file in listed)}
    return names


def newest(run: str) -> checkpoint.Checkpoint:
    folder = files.output(run)
    work.pull(folder, run_store.pulled)
    saved = checkpoint.newest(folder / "checkpoints")
    return saved._replace(folder=checkpoint._whole(saved.folder))


@pytest.mark.parametrize(
    ("url", "kills"),
    [
        pytest.param("s3", 2, marks=pytest.mark.slow),
        pytest.param("s3", 10, marks=pytest.mark.long),
        pytest.param("gs", 10, marks=pytest.mark.long),
    ],
    indirect=["url"],
)
def test_kills_lose_no_step_and_leave_nothing(runs, experiment, url, tmp_path, kills):
    whole, killed, steps = tmp_path / "whole", f"{url}/killed", 12 * kills
    experiment += ["--set", f"train.steps={steps}"]
    runs.finish(*experiment, "--out", whole)
    chosen, step, half, usual = random.Random(15), 0, 0, 0.0
    for number in range(1 + kills):
        pid = runs.start(*experiment, "--out", killed)
        wait_for(lambda: "compiled the training step" in runs.log.read_text())
        if not usual:
            began = time.monotonic()
            wait_for(lambda: committed(killed))
            usual = time.monotonic() - began  # until there is a checkpoint, on this machine, now
            os.kill(pid, signal.SIGTERM)
            status, told = runs.end()
            step = committed(killed)[-1]
            assert status == 0 and f"stopped at step {step}, saved" in told
            assert lines(killed)[-1]["step"] == step  # the last line before the preemption
            assert objects.below(f"{killed}/tensorboard")
            continue
        time.sleep(chosen.uniform(0, 1.5 * usual))
        os.kill(pid, signal.SIGKILL)
        status, told = runs.end()
        assert status == -signal.SIGKILL, told
        assert f"resumes at step {step}" in told or (step == 0 and "new run" in told), told
        before, step = step, max(committed(killed), default=0)
        assert before <= step < steps, number
        half += bool(strays(killed))
    assert step > 0 and (half > 0 or kills == 2)  # some were killed while they sent a checkpoint
    runs.start(*experiment, "--out", killed)
    status, told = runs.end()
    assert status == 0 and f"resumes at step {step}" in told
    expected = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines(killed)] == list(range(1, steps + 1))
    assert [line["loss"] for line in lines(killed)] == [line["loss"] for line in expected]
    assert strays(killed) == set() and objects.stat(f"{killed}/lock") is None
    assert committed(killed) == [steps - 2, steps]
    same_state.check(newest(killed), checkpoint.newest(whole / "checkpoints"))
    homes = files.places.cache() / "work"  # of dead processes, none is left
    assert {path.name for path in homes.glob("*-*") if path.is_dir()} <= {files.places.process()}


@pytest.mark.long
def test_several_hosts_have_a_store_in_common(s3, tmp_path, monkeypatch):
    """Each has a cache of its own; a signal to one of them ends all, with the last lines on the store."""
    monkeypatch.setenv(work.INTERVAL, "0.3")
    run, mesh = f"{s3}/run", ("--mesh", 1, 2, 1)
    processes.finish(processes.start(tmp_path, *mesh, devices=2))
    started = processes.start(
        tmp_path, *mesh, "--seconds", 0.7, "--out", run, count=2, devices=1, caches=True
    )
    wait_for(lambda: committed(run) == [4] and lines(run)[-1]["step"] >= 5)
    started[1].send_signal(signal.SIGTERM)
    told = processes.finish(started)
    stopped = committed(run)[-1]
    assert f"stopped at step {stopped}, saved" in told[0] and f"{run}: new run; 12 steps" in told[0]
    assert lines(run)[-1]["step"] == stopped < 12
    assert not json.loads(objects.read(f"{run}/summary.json"))["finished"]
    told = processes.finish(
        processes.start(tmp_path, *mesh, "--out", run, count=2, devices=1, caches=True)
    )
    assert f"{run}: resumes at step {stopped}" in told[0]
    assert json.loads(objects.read(f"{run}/summary.json"))["finished"]
    expected, got = processes.metrics(tmp_path), lines(run)
    assert [line["step"] for line in got] == [line["step"] for line in expected]
    np.testing.assert_allclose(
        [line["loss"] for line in got], [line["loss"] for line in expected], rtol=0, atol=1e-5
    )
    assert strays(run) == set() and objects.below(f"{run}/waiting") == {}


@pytest.mark.slow
@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_run_of_a_store_is_evaluated_exported_and_reported(runs, experiment, url, tmp_path):
    """What is asked of it there is what is asked of the same run in a folder."""
    run = f"{url}/run"
    gate = "model.cross_attention.gate.hidden=3"  # as kyuteye_mlx has it
    settings = ["--set", "train.steps=4", "--set", gate]
    asked = ["--benchmark", tmp_path / "tiny" / "asked.py"]
    folder = tmp_path / "run"
    runs.finish(*experiment, *settings, "--out", run)
    for name in objects.below(run):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        objects.download(f"{run}/{name}", folder / name)
    for place in (run, folder):
        runs.finish("eval", place, *asked)
        runs.finish("export", place, "--target", "mlx", "--out", f"{place}-mlx")
        assert f"{place}/report/report.html" in runs.finish("report", place)
    assert results(objects.read(f"{run}/eval/asked.json")) == results(
        (folder / "eval/asked.json").read_bytes()
    )
    there = objects.below(f"{run}-mlx")
    here = {path.name: path for path in (tmp_path / "run-mlx").iterdir()}
    assert there.keys() == here.keys() and "certificate.json" in there
    for name, path in here.items():
        if name != "README.md" and not name.startswith("certificate"):
            assert objects.read(f"{run}-mlx/{name}") == path.read_bytes(), name
    numbers = [json.loads(c) for c in (
        objects.read(f"{run}/report/results.json"), (folder / "report/results.json").read_bytes()
    )]  # fmt: skip
    assert numbers[0] == numbers[1]
    for name in objects.below(url):
        if "/checkpoints/" not in name and name.startswith("run"):
            assert str(tmp_path / "cache").encode() not in objects.read(f"{url}/{name}"), name


@pytest.mark.long
def test_a_sweep_on_a_store(s3, tmp_path):
    """Killed, it goes on where it was, from a host with another cache."""
    tiny_sweep.make(tmp_path / "tiny", steps=8)
    out = f"{s3}/sweep"
    command = [sys.executable, "-m", "mvjax", "sweep", str(tmp_path / "tiny" / "experiment.py")]
    command += ["--set", "train.checkpoint_every=3", "--out", out]
    environment = tiny_sweep.environment() | {"MVJAX_PUSH_SECONDS": "0.5"}
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    wait_for(lambda: objects.stat(f"{out}/none/seed-0/config.json"))
    first.terminate()
    assert first.wait() == 128 + signal.SIGTERM
    asked = "eval/asked.json"
    done = objects.read(f"{out}/gate/seed-0/{asked}")
    assert objects.stat(f"{out}/none/seed-0/{asked}") is None
    environment["MVJAX_CACHE"] = str(tmp_path / "another")
    subprocess.run(command, env=environment, check=True)
    assert objects.read(f"{out}/gate/seed-0/{asked}") == done
    for name in ("gate", "none"):
        run = f"{out}/{name}/seed-0"
        assert json.loads(objects.read(f"{run}/trial.json"))["state"] == "finished"
        assert json.loads(objects.read(f"{run}/{asked}"))["step"] == committed(run)[-1] == 8
        assert f"--out {run}".encode() in objects.read(f"{run}/trial.log")
        assert strays(run) == set() and objects.stat(f"{run}/trial.lock") is None
    left = subprocess.run([*command, "--dry-run"], env=environment, check=True, capture_output=True)
    assert left.stdout == b""


def results(content: bytes) -> list:
    return json.loads(content)["table"]


def wait_for(ready, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.01)
