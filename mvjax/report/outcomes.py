"""Reads what a sweep, or single runs, left on disk: trials, their runs, scores, gates and costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mvjax import run_folder
from mvjax.config import study as study_lib
from mvjax.report import results

MODES, Json = results.MODES, results.Json
SEEING = ("text", "audio")  # those in which the model sees the image that it is asked about
COSTS = {  # keys of trial.json, and what they are called
    "adapters": "trained parameters",
    "gate": "of these, the gate's",
    "flops_per_frame": "FLOPs per frame",
    "bytes_per_frame": "bytes per frame",
}
_STATES = ("running", "stopped", "finished", "failed")  # as `sweep.outcome.State`


def reads(name: str) -> bool:
    """Whether `read` looks at a file of a folder, or of a run in it; of a store these alone are copied."""
    *folders, file = name.split("/")
    return run_folder.EVAL in folders[-1:] or file in (
        run_folder.SWEEP,
        run_folder.TRIAL,
        run_folder.CONFIG_JSON,
        run_folder.CONFIG_TEXT,
    )


class LeftOut(NamedTuple):
    """A file that is not in the numbers, or not in all that it belongs to."""

    trial: str
    seed: int
    file: str  # in the run folder
    why: str

    def __str__(self) -> str:
        """As a line."""
        return f"{self.trial}, seed {self.seed}: {self.file}: {self.why}"


@dataclasses.dataclass(frozen=True)
class Run:
    """One trial with one seed."""

    seed: int
    state: str  # of `_STATES`, "not started", or "unreadable"
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
    steps: int | None = None  # that the sweep trains; None: not known

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
    left_out: Sequence[LeftOut] = ()

    def benchmarks(self) -> list[str]:
        """Those that any run has a result of, the study's first."""
        asked = [stem(one) for one in self.study.benchmarks]
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


def stem(asked: study_lib.Asked) -> str:
    """The name of a benchmark's files; one in a file is named after it."""
    return Path(asked.benchmark).stem


def read(folders: Sequence[Path]) -> Outcomes:
    """Reads one sweep folder, or any number of run folders, each a trial named after its folder.

    Raises:
      ValueError: if a folder is neither, if a sweep is not alone, or if a file that says what there is to
        read is damaged. Of runs of a sweep damaged files are in `left_out`.
    """
    sweeps = [folder for folder in folders if (folder / run_folder.SWEEP).is_file()]
    if sweeps and len(folders) > 1:
        raise ValueError(
            f"{sweeps[0]}: expected the folder of a sweep alone, got {len(folders)} folders; name it alone,"
            " or name runs of it, such as SWEEP/TRIAL/seed-0"
        )
    if sweeps:
        return _sweep(sweeps[0])
    names = _distinct(folders)
    single = len(folders) == 1
    question = "What does this run reach?" if single else "How do these runs compare?"
    study = study_lib.Study("Results of " + ", ".join(names), question)
    trials, left_out = [], []
    for folder, name in zip(folders, names, strict=True):
        run, faults = _run(folder, _seed(folder), ())
        left_out += [LeftOut(name, run.seed, *fault) for fault in faults]
        if not run.results:
            why = "; ".join(f"{file}: {fault}" for file, fault in faults) or "none"
            raise ValueError(
                f"{folder}: expected {run_folder.SWEEP} (of mvjax sweep), or results in {run_folder.EVAL}/"
                f" (of mvjax eval), found {why}; evaluate it first, or name the folder of a sweep"
            )
        trials.append(Trial(name, [dataclasses.replace(run, state="finished")], study.point(name)))
    return Outcomes(study, trials, sorted({t.runs[0].seed for t in trials}), left_out)


def _sweep(folder: Path) -> Outcomes:
    path = folder / run_folder.SWEEP
    try:
        sweep = results.load(path)
        if not isinstance(sweep, dict) or not sweep.keys() >= {"study", "seeds", "trials"}:
            raise ValueError("expected study, seeds and trials, found others; sweep again")
        study = study_lib.from_json(sweep["study"])
        seeds, configs = sorted(map(int, sweep["seeds"])), dict(sweep["trials"])
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
    order = [point.trial for point in study.points]
    names = sorted(configs, key=lambda name: order.index(name) if name in order else len(order))
    asked = [stem(one) for one in study.benchmarks]
    trials, left_out = [], []
    for name in names:
        runs = []
        for seed in seeds:
            run, faults = _run(folder / name / f"seed-{seed}", seed, asked)
            runs.append(run)
            if run.state in ("finished", "unreadable"):  # others count nowhere
                left_out += [LeftOut(name, seed, *fault) for fault in faults]
        trials.append(Trial(name, runs, study.point(name), _steps(configs[name])))
    return Outcomes(study, trials, seeds, left_out)


def _steps(config: Any) -> int | None:
    train = config.get("train") if isinstance(config, dict) else None
    return train.get("steps") if isinstance(train, dict) else None


def _run(folder: Path, seed: int, asked: Sequence[str]) -> tuple[Run, list[tuple[str, str]]]:
    """Returns the run and (file, what is wrong with it) of its evaluations."""
    try:
        outcome = _outcome(folder / run_folder.TRIAL)
    except (ValueError, OSError) as error:
        return Run(seed, "unreadable", str(error)), [(run_folder.TRIAL, str(error))]
    costs = {**outcome, **(outcome.get("parameters") or {})}
    found = results.read(folder, asked)
    run = Run(
        seed,
        outcome.get("state", "not started"),
        outcome.get("error"),
        float(outcome.get("seconds") or 0.0),
        {key: None if costs.get(key) is None else float(costs[key]) for key in COSTS},
        found.results,
        found.answers,
    )
    return run, found.faults


def _outcome(path: Path) -> Json:
    """Reads trial.json; {} if there is none."""
    outcome = results.load(path) if path.is_file() else {}
    if not isinstance(outcome, dict):
        raise ValueError(f"expected an object, got {outcome!r}")
    costs = outcome.get("parameters") or {}
    kinds = {"error": str | None, "parameters": dict | None}
    bad = [name for name, kind in kinds.items() if not isinstance(outcome.get(name), kind)]
    bad += [] if outcome.get("state", "failed") in _STATES else ["state"]
    numbers = {"seconds": outcome.get("seconds")}
    if not bad:
        numbers |= {key: {**outcome, **costs}.get(key) for key in COSTS}
    bad += [name for name, value in numbers.items() if not results.is_number(value)]
    if bad:
        raise ValueError(
            f"{', '.join(bad)}: expected as mvjax sweep writes it, got {outcome.get(bad[0])!r}"
        )
    return outcome


def _seed(folder: Path) -> int:
    path = folder / run_folder.CONFIG_JSON
    try:
        return int(results.load(path)["train"]["seed"]) if path.is_file() else 0
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a config with train.seed: {error}") from error


def _distinct(folders: Sequence[Path]) -> list[str]:
    """Folders' names, with as many of their parents' as tell them apart."""
    for depth in range(1, 1 + max(len(folder.resolve().parts) for folder in folders)):
        names = ["/".join(folder.resolve().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"expected each folder once, got {', '.join(map(str, folders))}")
