"""Real processes: killed at any step and resumed by one, two or four, the stream of rows is the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_records

from mvjax.data import mixture

HERE = Path(__file__).parent
STEPS = 24
ROWS = 16  # a step: 4 of speech, 12 of text


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    codec = root / "codec"
    codec.write_text("a codec")
    mixture.ensure_records(toy_records.make_config(root / "records", codec).data)
    return root


def processes(world, out, first, last, count):
    path = [HERE.parents[1], HERE, os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "JAX_PLATFORMS": "cpu"}
    words = [world / "records", world / "codec", out, first, last]
    return [
        subprocess.Popen(
            [sys.executable, HERE / "stream_process.py", *map(str, words), str(index), str(count)],
            env=env,
        )
        for index in range(count)
    ]


def told(out) -> list[list[str]]:
    """The whole lines of each process that has written one."""
    texts = [path.read_text() for path in out.parent.glob(f"{out.name}.*")]
    return [whole for text in texts if (whole := text.split("\n")[:-1])]


def lines(out) -> list[str]:
    """Those of all processes."""
    return [line for whole in told(out) for line in whole]


def run(world, out, first, last, count):
    assert [process.wait() for process in processes(world, out, first, last, count)] == [0] * count
    return lines(out)


@pytest.mark.slow
def test_kill_and_resume_on_other_numbers_of_processes(world, tmp_path):
    whole = run(world, tmp_path / "whole", 0, STEPS, 1)
    assert len(whole) == STEPS * ROWS == len(set(whole))
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    for n, (before, after) in enumerate([(1, 4), (4, 2), (2, 1)]):
        out = tmp_path / f"killed{n}"
        running = processes(world, out, 0, STEPS * 100, before)
        enough = int(rng.integers(1, STEPS - 2)) * ROWS
        deadline = time.monotonic() + 120
        while len(lines(out)) < enough or len(told(out)) < before:
            assert time.monotonic() < deadline and all(p.poll() is None for p in running)
            time.sleep(0.02)
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()
        # The last checkpoint is of a step that all had done; what came after it is read again.
        done = [max(int(line.split()[0]) for line in whole) for whole in told(out)]
        resumed = min(*done, STEPS - 1, STEPS)
        kept = [line for line in lines(out) if int(line.split()[0]) < resumed]
        again = run(world, tmp_path / f"resumed{n}", resumed, STEPS, after)
        assert sorted(kept + again) == sorted(whole), (before, after, resumed)
