"""Sweeps of real commands: killed and run again; a gate that is defined in two files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import same_state
import tiny_sweep

import mvjax

pytestmark = pytest.mark.slow

GATE = '''

@dataclasses.dataclass(frozen=True)
class Halved(Design):
    """g = sigmoid(alpha) / 2."""

    def params(self, width: int, heads: int) -> dict[str, ParamSpec]:
        return {"halved": ParamSpec((3,), nn.initializers.zeros)}

    def __call__(self, params: Mapping[str, Array], seen: Seen) -> Float[Array, "*batch D"]:
        g = jax.nn.sigmoid(jnp.sum(params["halved"].astype(jnp.float32))) / 2
        return jnp.broadcast_to(g, seen.u.shape)
'''


def start(experiment: Path, out: Path, *words: str, first: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "mvjax", "sweep", str(experiment), "--out", str(out), *words]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(experiment.parent / "compiled")}
    return subprocess.Popen(
        command,
        env=tiny_sweep.environment(first) | compiled,
        cwd=experiment.parent,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen) -> str:
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return told


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def until(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def children(process: subprocess.Popen) -> list[int]:
    found = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for path in found for pid in path.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the children of a process in /proc")
def test_a_sweep_that_is_killed_three_times_ends_as_one_that_is_not(tmp_path):
    from mvjax.train import checkpoint

    experiment = tiny_sweep.make(tmp_path / "tiny")
    words = ("--pick", "gate", "--threads", "1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(experiment, whole, *words)
    run = killed / "gate" / "seed-0"
    # in training, with its command; in training, whose command goes on; in evaluation, with its command
    for moment, orphans in (
        (lambda: 3 <= steps(run) < 24, False),
        (lambda: 8 <= steps(run) < 24, True),
        (lambda: steps(run) == 24 and "mvjax eval" in (run / "trial.log").read_text(), False),
    ):
        process = start(experiment, killed, *words)
        until(moment)
        pids = children(process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for pid in [] if orphans else pids:
            os.kill(pid, signal.SIGKILL)
    assert "1 run: 1 finished" in end(start(experiment, killed, *words))
    end(undisturbed)
    runs = [folder / "gate" / "seed-0" for folder in (whole, killed)]
    same_state.check(*(checkpoint.newest(one / "checkpoints") for one in runs))
    lines = [(one / "metrics.jsonl").read_text().splitlines() for one in runs]
    losses = [[json.loads(line)["loss"] for line in one] for one in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 24
    results = [json.loads((one / "eval" / "asked.json").read_text()) for one in runs]
    trials = [json.loads((one / "trial.json").read_text()) for one in runs]
    for found in (*results, *trials):
        found.pop("seconds", None)
    assert results[0] == results[1] and trials[0] == trials[1]
    assert results[0]["table"][-1]["text"] > 0


def test_a_gate_of_two_files_is_swept(tmp_path):
    """gates.py of a copy of the package, and the experiment."""
    experiment = tiny_sweep.make(tmp_path / "tiny", steps=4)
    package, ours = tmp_path / "copy" / "mvjax", Path(mvjax.__file__).parent
    package.mkdir(parents=True)
    for path in ours.iterdir():
        (package / path.name).symlink_to(path)
    gates = (ours / "gates.py").read_text()
    before, union, after = gates.partition("\nGate = ")
    (package / "gates.py").unlink()
    (package / "gates.py").write_text(f"{before}{GATE}{union}Halved | {after}")
    text = experiment.read_text().replace("gate=None", "gate=gates.Halved()")
    text = text.replace(
        "import study as study_lib, text",
        "import study as study_lib, text\nfrom mvjax import gates",
    )
    experiment.write_text(text.replace("benchmarks=(asked,)", "benchmarks=()"))
    out = tmp_path / "out"
    end(start(experiment, out, "--pick", "none", first=tmp_path / "copy"))
    trial = json.loads((out / "none/seed-0/trial.json").read_text())
    assert trial["state"] == "finished" and trial["parameters"]["gate"] == 3 * 3  # of three layers
    assert 'gate = "Halved"\n' in (out / "none/seed-0/config.txt").read_text()
