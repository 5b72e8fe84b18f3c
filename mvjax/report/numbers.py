"""The numbers of a comparison: means over seeds, differences from the baseline; as JSON and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from mvjax.report import outcomes as outcomes_lib
from mvjax.report import stats

METHOD = (
    "Means are over seeds; intervals are 95% by Student's t over seeds, and speak of training runs on these "
    "questions. Against the baseline, runs of equal seed are paired: a two-sided t test over seeds, and a "
    f"two-sided sign-flip permutation test ({stats.FLIPS:,} draws) over questions, of each question's mean "
    "difference over seeds, which speaks of other questions for these very runs. p values are Holm's, for "
    "all trials of a benchmark, text and audio together, each kind of test for itself."
)


@dataclasses.dataclass(frozen=True)
class Score:
    """One trial in one mode of one benchmark."""

    trial: str
    benchmark: str
    mode: str
    mean: stats.Mean
    seeds: Mapping[int, float]
    kinds: Mapping[str, float]  # means over seeds
    # over questions, of a single seed; None if there are several or it is not known
    interval: tuple[float, float] | None
    difference: stats.Difference | None = None  # from the baseline; p values as corrected

    def ends(self) -> tuple[float, float] | None:
        """Of the interval: over seeds if there are several, else over questions."""
        return self.interval if self.mean.half is None else self.mean.ends()


def scores(outcomes: outcomes_lib.Outcomes) -> list[Score]:
    """Every score of a trial with finished runs, with corrected differences from the study's baseline."""
    found = []
    for benchmark in outcomes.benchmarks():
        of_one = [
            _score(outcomes, trial, benchmark, mode)
            for trial in outcomes.trials
            for mode in outcomes.modes(benchmark)
            if trial.scores(benchmark, mode)
        ]
        found += _corrected(of_one)
    return found


def scaled(metric: str) -> str:
    """A metric and the unit in which 100 times its values are shown, such as "CIDEr x 100"."""
    return f"{metric}, %" if metric.endswith("accuracy") else f"{metric} x 100"


def gates(trial: outcomes_lib.Trial, benchmark: str) -> dict[str, list[float]]:
    """{class of frames: mean activation of each layer}, means over the seeds that have it."""
    traced = [
        run.results[benchmark].get("gates") or {}
        for run in trial.finished()
        if benchmark in run.results
    ]
    kinds = list(dict.fromkeys(kind for one in traced for kind in one))
    return {
        kind: np.mean([one[kind] for one in traced if kind in one], axis=0).round(6).tolist()
        for kind in kinds
    }


def as_json(outcomes: outcomes_lib.Outcomes, found: Sequence[Score]) -> str:
    """Everything, for other tools; no paths of the machine that it was computed on."""
    content = {
        "study": _without_folders(dataclasses.asdict(outcomes.study)),
        "seeds": list(outcomes.seeds),
        "left_out": [one._asdict() for one in outcomes.left_out],
        "method": METHOD,
        "benchmarks": {name: _benchmark(outcomes.result(name)) for name in outcomes.benchmarks()},
        "trials": [_trial(trial, outcomes.benchmarks()) for trial in outcomes.trials],
        "scores": [dataclasses.asdict(one) | _unpacked(one) for one in found],
    }
    return json.dumps(_rounded(content), indent=1) + "\n"


def as_csv(outcomes: outcomes_lib.Outcomes, found: Sequence[Score]) -> str:
    """One row a trial, benchmark, mode and seed."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["trial", "benchmark", "mode", "seed", "score", *outcomes_lib.COSTS])
    trials = {trial.name: trial for trial in outcomes.trials}
    for one in found:
        costs = [trials[one.trial].cost(key) for key in outcomes_lib.COSTS]
        for seed, score in one.seeds.items():
            rows.writerow([one.trial, one.benchmark, one.mode, seed, round(score, 6), *costs])
    return file.getvalue()


def _score(
    outcomes: outcomes_lib.Outcomes, trial: outcomes_lib.Trial, benchmark: str, mode: str
) -> Score:
    seeds = trial.scores(benchmark, mode)
    runs = {run.seed: run for run in trial.finished()}
    tables = [runs[seed].results[benchmark] for seed in seeds]
    rows = [row for result in tables for row in result["table"][:-1]]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    by_kind = {k: [row.get(mode) for row in rows if row["kind"] == k] for k in kinds}
    interval = tables[0].get("intervals", {}).get(mode) if len(tables) == 1 else None
    return Score(
        trial=trial.name,
        benchmark=benchmark,
        mode=mode,
        mean=stats.mean(list(seeds.values())),
        seeds=seeds,
        kinds={k: float(np.mean(v)) for k, v in by_kind.items() if None not in v},
        interval=None if interval is None else (interval[0], interval[1]),
        difference=_difference(outcomes, trial, benchmark, mode),
    )


def _difference(
    outcomes: outcomes_lib.Outcomes, trial: outcomes_lib.Trial, benchmark: str, mode: str
) -> stats.Difference | None:
    base = next((t for t in outcomes.trials if t.name == outcomes.study.baseline), None)
    if base is None or base.name == trial.name or mode not in outcomes_lib.SEEING:
        return None
    theirs = {run.seed: run for run in base.finished()}
    key = (benchmark, mode)
    answers = {
        run.seed: (run.answers[key], theirs[run.seed].answers[key])
        for run in trial.finished()
        if key in run.answers and run.seed in theirs and key in theirs[run.seed].answers
    }
    return stats.difference(
        trial.scores(benchmark, mode), base.scores(benchmark, mode), answers=answers
    )


def _corrected(found: Sequence[Score]) -> list[Score]:
    """With Holm's p values, over all of these."""
    of_seeds = stats.holm([one.difference and one.difference.p_seeds for one in found])
    of_questions = stats.holm([one.difference and one.difference.p_questions for one in found])
    return [
        one
        if one.difference is None
        else dataclasses.replace(
            one, difference=one.difference._replace(p_seeds=seeds, p_questions=questions)
        )
        for one, seeds, questions in zip(found, of_seeds, of_questions, strict=True)
    ]


def _trial(trial: outcomes_lib.Trial, benchmarks: Sequence[str]) -> dict[str, Any]:
    return {
        "name": trial.name,
        "runs": [{"seed": r.seed, "state": r.state, "seconds": r.seconds} for r in trial.runs],
        **{key: trial.cost(key) for key in outcomes_lib.COSTS},
        "gates": {name: one for name in benchmarks if (one := gates(trial, name))},
    }


def _benchmark(result: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("metric", "protocol", "limit", "samples", "device", "step")
    columns = ("kind", "n", "chance", "direction", "turns")
    rows = [{k: row[k] for k in columns if k in row} for row in result.get("table", ())]
    return _without_folders({key: result[key] for key in kept if key in result}) | {"rows": rows}


def _unpacked(one: Score) -> dict[str, Any]:
    """What named tuples hold, by name."""
    d = one.difference
    named = None if d is None else d._asdict() | {"mean": d.mean._asdict()}
    return {"mean": one.mean._asdict(), "difference": named}


def _without_folders(value: Any) -> Any:
    """Absolute paths become their last part."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith("/") else value


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
