"""Writes a sweep folder as `mvjax sweep` leaves it, without training: docs/sweeps.md."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from mvjax.config import study as study_lib

KINDS = ("digit", "place")
GATED = {"image": [0.1, 0.3, 0.5], "off-topic": [0.1, 0.05, 0.02], "silence": [0.2, 0.2, 0.2]}


def write(folder: Path, study: study_lib.Study, trials, *, seeds=(0, 1, 2), questions=40) -> Path:
    """`trials`: {name: {mode: probability of a right answer}}, or "failed", or None: not started."""
    names = {
        "study": study_lib.to_json(study),
        "seeds": list(seeds),
        "trials": {n: {} for n in trials},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"experiment": "x.py", "settings": [], **names}))
    for i, (name, modes) in enumerate(trials.items()):
        for seed in seeds:
            if modes is not None:
                state = "failed" if modes == "failed" else "finished"
                run = folder / name / f"seed-{seed}"
                _trial(run, name, seed, state, i)
                if state == "finished":
                    evaluation(run, "digits", modes, rng=[i, seed], questions=questions)
    return folder


def evaluation(run: Path, benchmark: str, modes, *, rng=(0,), questions=40, gates=GATED) -> None:
    """RUN/eval/BENCHMARK.json and its samples; question q is as hard in every run."""
    (run / "eval").mkdir(parents=True, exist_ok=True)
    luck, hard = np.random.default_rng(rng), np.random.default_rng(7).random(questions)
    lines = []
    for mode, right in modes.items():
        noisy = right + luck.normal(0, 0.02)
        for q in range(questions):
            score = float(hard[q] < noisy) if luck.random() < 0.9 else float(luck.random() < noisy)
            lines.append({"id": f"q{q}", "mode": mode, "kind": KINDS[q % 2], "score": score})
    rows = [_row(lines, modes, kind) for kind in (*KINDS, "all")]
    result = {
        "step": 200, "benchmark": benchmark, "metric": "accuracy", "table": rows, "limit": questions,
        "protocol": {"lead_in": 0.3, "seed": 1, "codec": "/somewhere/secret/mimi"}, "gates": gates,
        "intervals": {mode: [rows[-1][mode] - 0.1, rows[-1][mode] + 0.1] for mode in modes},
    }  # fmt: skip
    (run / "eval" / f"{benchmark}.json").write_text(json.dumps(result))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "eval" / f"{benchmark}.samples.jsonl").write_text(text + '{"id": "cut')


def switch_evaluation(run: Path, *, rng) -> None:
    """RUN/eval/digits-switch.json: scores fall with the turns before, and without the image do not."""
    luck = np.random.default_rng(rng)
    rows = []
    for topic, direction in (("other", "image to other"), ("image", "other to image")):
        for turns in (0, 1, 3, 10):
            text = 0.9 - 0.02 * turns + float(luck.normal(0, 0.02))
            kind = {"kind": f"{topic} after {turns}", "n": 24, "text": text, "blind": 0.95}
            rows.append(kind | {"direction": direction, "turns": turns, "chance": None})
    table = [*rows, {"kind": "all", "n": 192, "text": 0.8, "blind": 0.5}]
    (run / "eval").mkdir(parents=True, exist_ok=True)
    result = {"step": 200, "benchmark": "digits-switch", "metric": "accuracy", "table": table}
    (run / "eval" / "digits-switch.json").write_text(json.dumps(result))


def _row(lines, modes, kind):
    own = [line for line in lines if kind in ("all", line["kind"])]
    row = {m: float(np.mean([x["score"] for x in own if x["mode"] == m])) for m in modes}
    n = len({line["id"] for line in own})
    return {"kind": kind, "n": n, **row, "chance": 0.25}


def _trial(run: Path, name: str, seed: int, state: str, i: int) -> None:
    run.mkdir(parents=True)
    error = None if state == "finished" else "Traceback\nValueError: no such <gate>"
    costs = {"flops_per_frame": 1e6 * (1 + i), "bytes_per_frame": 4e6 * (1 + i)}
    if state == "failed":
        costs = dict.fromkeys(costs)
    parameters = {"adapters": 10_000 * (i + 1), "gate": 900 * i}
    outcome = {"name": name, "seed": seed, "state": state, "error": error, "seconds": 61.0}
    (run / "trial.json").write_text(json.dumps(outcome | {"parameters": parameters} | costs))


GATES = study_lib.Study(
    title="Gates",
    question="Which gate?",
    expected="No clear winner.",
    benchmarks=(study_lib.Asked("digits", ("text", "audio"), 40),),
    paper="gate_ablation",
    baseline="released",
)
RATIO = dataclasses.replace(
    GATES,
    title="Speech ratio",
    plot="curve",
    x_label="speech rows, %",
    points=tuple(study_lib.Point(f"speech_{x}", "digits", float(x)) for x in (0, 1, 5, 25, 100)),
    paper="speech_ratio",
    baseline="speech_25",
)
SWITCH = dataclasses.replace(
    GATES, title="Context switch", plot="context switch", paper="context_switch", baseline="gate"
)
