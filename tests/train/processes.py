"""Starts toy runs in processes of their own, one or several that belong together."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import toy

from mvjax.train import distributed

TIMEOUT = 600  # seconds; a hang, not a slow machine


def start(folder: Path, *arguments: object, count: int = 1, devices: int = 1, caches: bool = False):
    """Starts `count` processes of one run with `devices` simulated devices each; see `toy.main`.

    With `caches` each copies from object stores as if it had a host of its own.
    """
    toy.make_config(folder / "frozen")  # before they all do
    joined = _joined(count)
    if caches:
        joined = [j | {"MVJAX_CACHE": str(folder / f"host-{n}")} for n, j in enumerate(joined)]
    return [
        subprocess.Popen(
            [sys.executable, toy.__file__, str(folder), *map(str, arguments)],
            env={**environment(folder, devices=devices), **variables},
            stderr=subprocess.PIPE,
            text=True,
        )
        for variables in joined
    ]


def run(program: str, folder: Path, *, count: int, devices: int) -> list[str]:
    """Runs a Python program in processes that belong together; returns what each wrote to stdout."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**environment(folder, devices=devices), **joined},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for joined in _joined(count)
    ]
    ends = [process.communicate(timeout=TIMEOUT) for process in started]
    assert not any(process.returncode for process in started), ends
    return [out for out, _ in ends]


def environment(folder: Path, *, devices: int) -> dict[str, str]:
    """Quick compilation, once for all runs beside the folder."""
    flags = os.environ["XLA_FLAGS"]  # the same instructions as here
    return {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def finish(processes) -> list[str]:
    """Waits for all of them, and returns what each wrote to stderr; all must have returned 0."""
    told = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0] * len(processes), "\n\n".join(told)
    return told


def wait_for_step(folder: Path, step: int) -> None:
    """Waits until a step is logged."""
    for _ in range(10 * TIMEOUT):
        if any(line["step"] >= step for line in metrics(folder)):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{folder}: step {step} did not come")


def metrics(folder: Path) -> list[dict]:
    """The whole lines of metrics.jsonl."""
    path = folder / "run" / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def ids(folder: Path) -> dict[int, list[str]]:
    """The rows that were taken for each step, by all processes that read different ones."""
    found: dict[int, list[str]] = {}
    for path in sorted(folder.glob("ids-*.txt")):
        for line in map(json.loads, path.read_text().splitlines()):
            found.setdefault(line["step"], []).extend(line["speech"] + line["speechless"])
    return found


def _joined(count: int) -> list[dict[str, str]]:
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        {
            distributed.COORDINATOR: address,
            distributed.COUNT: str(count),
            distributed.INDEX: str(index),
        }
        for index in range(count)
    ]
