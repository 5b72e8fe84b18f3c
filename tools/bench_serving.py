"""The serving part of `bench_gpu.py`: milliseconds a frame in each runtime and precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SLOTS = (1, 8, 16, 32)
PUBLISHED = {
    1: 28.0,
    8: 33.0,
    16: 45.0,
    32: 70.0,
}  # ms a tick of a serving engine, a 7B, one H100-class card
WITHIN, PICTURE = 1.5, 1.0  # times the limit; ms
SETTINGS = (
    ("torch", "bfloat16", None),
    ("torch", "bfloat16", "int8"),
    ("jax", "bfloat16", None),
    ("jax", "bfloat16", "int8"),
    ("mlx", "bfloat16", None),
    ("mlx", "bfloat16", "int8"),
)


def serving(size: str, device: str, *, cpu: bool, slots: tuple[int, ...] = SLOTS) -> list[dict]:
    """Measures all settings, each in a process of its own; prints and returns them.

    Args:
      size: of `mvjax bench --random`.
      device: jax's name of it.
      cpu: tries the tool itself, with few slots and frames.
      slots: conversations in a batch.
    """
    frames = 100
    if cpu:
        slots, frames = (1, 2), 10
    results = []
    for runtime, dtype, quantize in SETTINGS:
        name = f"{runtime} {quantize or dtype}"
        measured = run(size, runtime, dtype, quantize, slots, cpu=cpu, frames=frames)
        if measured is None:
            print(f"serving, {name}: failed; see above", flush=True)
            continue
        results.append(report(name, measured, size) | {"device": device})
    return results


def run(
    size: str,
    runtime: str,
    dtype: str,
    quantize: str | None,
    slots: tuple[int, ...],
    *,
    cpu: bool,
    frames: int,
) -> dict | None:
    """Returns the result of `mvjax bench` in a process of its own; None if it fails."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), environment.get("PYTHONPATH", "")))
    environment["JAX_PLATFORMS"] = "cpu" if cpu or runtime != "jax" else "cuda,cpu"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mvjax", "bench", "--random", size, "--runtime", runtime]
        command += ["--dtype", dtype, "--frames", str(frames), "--out", folder]
        command += ["--slots", ",".join(map(str, slots))]
        if quantize:
            command += ["--quantize", quantize]
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
        files = sorted(Path(folder).glob("*.json"))
        if done.returncode or not files:
            return None
        return json.loads(files[0].read_text())["results"][0]


def report(name: str, measured: dict, size: str) -> dict:
    """Prints one setting beside its limit and, of the 7B, what is published; returns its figures."""
    cases, shares = measured["measured"]["cases"], measured["share_of_limit"]
    told = {"name": f"serving, {name}", "dtype": measured["dtype"], "cases": []}
    for case, share in zip(cases, shares):
        p50 = case["latency"]["p50"]
        row = {key: case[key] for key in ("slots", "image", "position")}
        row |= {"p50_ms": p50, "p99_ms": case["latency"]["p99"], "share_of_limit": share}
        told["cases"].append(row)
        text = f"{told['name']}, {case['slots']} slots, {'image' if case['image'] else 'blind'}"
        text += f", from frame {case['position']}: {p50:.2f} ms (p99 {row['p99_ms']:.2f})"
        if share is not None:
            verdict = "meets" if share * WITHIN >= 1 else "misses"
            text += f", {1 / share:.2f} x the limit, {verdict} {WITHIN}"
        if size == "7b" and case["slots"] in PUBLISHED:
            text += f"; published elsewhere: {PUBLISHED[case['slots']]:.0f} ms"
        print(text, flush=True)
    p50 = {(c["position"], c["image"]): c["p50_ms"] for c in told["cases"] if c["slots"] == 1}
    for position in sorted({position for position, _ in p50}):
        if (position, False) in p50 and (position, True) in p50:
            added = p50[position, True] - p50[position, False]
            verdict = "meets" if added < PICTURE else "misses"
            print(f"{told['name']}: the picture adds {added:.2f} ms, {verdict} {PICTURE:.0f} ms")
    return told
