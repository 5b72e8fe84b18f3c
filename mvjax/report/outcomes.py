"""Reads what a sweep, or single runs, left on disk: trials, their runs, scores, gates and costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvjax import run_folder
from mvjax.config import study as study_lib

MODES = ("text", "audio", "blind", "shuffled")  # as `eval.benchmarks.MODES`, in the order of tables
SEEING = ("text", "audio")  # those in which the model sees the image that it is asked about
COSTS = {  # keys of trial.json, and what they are called
    "adapters": "trained parameters",
    "gate": "of these, the gate's",
    "flops_per_frame": "FLOPs per frame",
    "bytes_per_frame": "bytes per frame",
}

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One trial with one seed."""

    seed: int
    state: str  # "finished", "failed", "running", or "not started"
    error: str | None = None
    seconds: float = 0.0
    costs: Mapping[str, float | None] = dataclasses.field(default_factory=dict)  # by keys of COSTS
    results: Mapping[str, Json] = dataclasses.field(default_factory=dict)  # by benchmark
    # {(benchmark, mode): {sample id: score}}
    answers: Mapping[tuple[str, str], Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def score(self, benchmark: str, mode: str) -> float | None:
        """The overall score; None if it was not asked."""
        table = self.results[benchmark]["table"] if benchmark in self.results else [{}]
        return table[-1].get(mode)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One config, with all its seeds in rising order."""

    name: str
    runs: Sequence[Run]
    point: study_lib.Point

    def finished(self) -> list[Run]:
        """The runs that count."""
        return [run for run in self.runs if run.state == "finished"]

    def scores(self, benchmark: str, mode: str) -> dict[int, float]:
        """{seed: overall score} of finished runs."""
        found = {run.seed: run.score(benchmark, mode) for run in self.finished()}
        return {seed: score for seed, score in found.items() if score is not None}

    def cost(self, key: str) -> float | None:
        """A cost, which is the same of every seed; None if it is not known."""
        known = [run.costs.get(key) for run in self.runs]
        return next((value for value in known if value is not None), None)


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """A study and what came of it; trials in the study's order."""

    study: study_lib.Study
    trials: Sequence[Trial]
    seeds: Sequence[int]

    def benchmarks(self) -> list[str]:
        """Those that any run has a result of, the study's first."""
        asked = [Path(one.benchmark).stem for one in self.study.benchmarks]
        found = [name for trial in self.trials for run in trial.runs for name in run.results]
        return list(dict.fromkeys([*(name for name in asked if name in found), *sorted(found)]))

    def modes(self, benchmark: str) -> list[str]:
        """The prompt modes that any finished run has a score of."""
        return [m for m in MODES if any(trial.scores(benchmark, m) for trial in self.trials)]

    def result(self, benchmark: str) -> Json:
        """One result of a benchmark, for what all have in common; one that says its protocol, if any does."""
        runs = [run for trial in self.trials for run in trial.finished()]
        found = [run.results[benchmark] for run in runs if benchmark in run.results]
        return next((one for one in found if "protocol" in one), found[0] if found else {})


def read(folders: Sequence[Path]) -> Outcomes:
    """Reads one sweep folder, or any number of run folders, each a trial named after its folder.

    Raises:
      ValueError: if a folder is neither, or a file in it is damaged.
    """
    if len(folders) == 1 and (folders[0] / run_folder.SWEEP).is_file():
        return _sweep(folders[0])
    for folder in folders:
        if not (folder / run_folder.EVAL).is_dir():
            raise ValueError(
                f"{folder}: expected {run_folder.SWEEP} (of mvjax sweep), or {run_folder.EVAL}/ (of"
                " mvjax eval), found neither; evaluate it first, or name the folder of a sweep alone"
            )
    names = _distinct(folders)
    study = study_lib.Study("Results of " + ", ".join(names), "How do these runs compare?")
    runs = [dataclasses.replace(_run(f, _seed(f)), state="finished") for f in folders]
    trials = [Trial(n, [r], study.point(n)) for n, r in zip(names, runs, strict=True)]
    return Outcomes(study, trials, sorted({run.seed for run in runs}))


def _sweep(folder: Path) -> Outcomes:
    sweep = _json(folder / run_folder.SWEEP)
    try:
        study = study_lib.from_json(sweep["study"])
        seeds, names = sorted(sweep["seeds"]), list(sweep["trials"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / run_folder.SWEEP}: {error}") from error
    order = [point.trial for point in study.points]
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    trials = []
    for name in names:
        runs = [_run(folder / name / f"seed-{seed}", seed) for seed in seeds]
        trials.append(Trial(name, runs, study.point(name)))
    return Outcomes(study, trials, seeds)


def _run(folder: Path, seed: int) -> Run:
    outcome = _json(folder / run_folder.TRIAL) if (folder / run_folder.TRIAL).is_file() else {}
    costs = {**outcome, **(outcome.get("parameters") or {})}
    results = {}
    for path in sorted((folder / run_folder.EVAL).glob("*.json")):
        result = _json(path) if "@" not in path.stem else {}
        table = result.get("table") if isinstance(result, dict) else None
        if table and table[-1].get("kind") == "all":
            results[path.stem] = result
    answers: dict[tuple[str, str], dict[str, float]] = {}
    for name in results:
        for line in _lines(folder / run_folder.EVAL / f"{name}.samples.jsonl"):
            if line.get("score") is not None:
                answers.setdefault((name, line["mode"]), {})[line["id"]] = float(line["score"])
    return Run(
        seed,
        outcome.get("state", "not started"),
        outcome.get("error"),
        float(outcome.get("seconds", 0.0)),
        {key: None if costs.get(key) is None else float(costs[key]) for key in COSTS},
        results,
        answers,
    )


def _lines(path: Path) -> Iterable[Json]:
    """The lines that are whole: the last one of an evaluation that was killed may not be."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and {"mode", "id"} <= value.keys():
            yield value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error


def _seed(folder: Path) -> int:
    path = folder / run_folder.CONFIG_JSON
    return _json(path).get("train", {}).get("seed", 0) if path.is_file() else 0


def _distinct(folders: Sequence[Path]) -> list[str]:
    """Folders' names, with as many of their parents' as tell them apart."""
    for depth in range(1, 1 + max(len(folder.resolve().parts) for folder in folders)):
        names = ["/".join(folder.resolve().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"expected each folder once, got {', '.join(map(str, folders))}")
