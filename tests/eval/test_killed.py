"""Evaluations in processes of their own: killed at random moments, and several that belong together."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_speaker

TIMEOUT = 600  # seconds; a hang, not a slow machine
pytestmark = pytest.mark.slow


def start(folder: Path, *modes: str, count: int = 1, devices: int = 1) -> list[subprocess.Popen]:
    folder.mkdir(exist_ok=True)
    flags = os.environ["XLA_FLAGS"]  # the same instructions as here
    env = {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {"MVJAX_COORDINATOR": address, "MVJAX_PROCESSES": str(count)} if count > 1 else {}
    return [
        subprocess.Popen(
            [sys.executable, small_speaker.__file__, str(folder), *modes],
            env={**env, **joined, "MVJAX_PROCESS": str(index)} if joined else env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen]) -> None:
    told = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n\n".join(told)


def answers(folder: Path) -> list[dict]:
    text = (folder / "noise.samples.jsonl").read_text()
    return [{**json.loads(line), "seconds": None} for line in text.splitlines()]


def result(folder: Path) -> list:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluations") / "whole"
    finish(start(folder, "text", "blind"))
    return folder


def test_killed_at_three_random_moments_it_ends_as_if_it_had_not_been(whole):
    folder, draw = whole.parent / "killed", random.Random()
    path = folder / "noise.samples.jsonl"
    for after in sorted(draw.sample(range(16), 3)):
        (process,) = start(folder, "text", "blind")
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") > after:
                break
            time.sleep(0.002)
        time.sleep(0.02 * draw.random())
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=TIMEOUT)
    finish(start(folder, "text", "blind"))
    assert answers(folder) == answers(whole) and result(folder) == result(whole)


def test_processes_share_the_rows_and_write_one_result(whole):
    folder = whole.parent / "together"
    finish(start(folder, "text", count=2, devices=2))
    said = [(answer["id"], answer["said"]) for answer in answers(folder)]
    assert said == [(a["id"], a["said"]) for a in answers(whole) if a["mode"] == "text"]
    (table, intervals, _), (want, _, _) = result(folder), result(whole)
    assert [row["text"] for row in table] == [row["text"] for row in want]
    assert intervals["text"] == result(whole)[1]["text"]
