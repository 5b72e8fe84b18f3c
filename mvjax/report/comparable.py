"""Keeps the evaluations that may stand in one table: of one protocol, seed and number of questions."""

from __future__ import annotations

import collections
import dataclasses
import json
from typing import Any

from mvjax import messages, run_folder
from mvjax.report import outcomes as outcomes_lib

# of a protocol, what answers of the other kind do not depend on
_SPOKEN = ("lead_in", "tail", "greeting", "answer_from")
_WRITTEN = ("max_tokens", "template")
_FILES = ("codec", "tokenizer")  # the model's, wherever it lies


def protocol(result: outcomes_lib.Json) -> dict[str, Any]:
    """The fields of a result's protocol that its answers depend on."""
    row = result["table"][-1]
    spoken = row.get("audio") is not None
    written = any(row.get(mode) is not None for mode in outcomes_lib.MODES if mode != "audio")
    idle = (*_FILES, *(() if spoken else _SPOKEN), *(() if written else _WRITTEN))
    return {k: v for k, v in (result.get("protocol") or {}).items() if k not in idle}


def keep(outcomes: outcomes_lib.Outcomes) -> outcomes_lib.Outcomes:
    """Leaves out, by name, evaluations that are not what the study asks for, or not what most are.

    The study gives the limit, its trials the step. Protocol, seed and number of questions are those of most
    evaluations of a benchmark, among equally many those with more questions, and then those that come first.
    """
    out: dict[tuple[str, int], dict[str, str]] = {}  # {(trial, seed): {benchmark: why}}
    for name in outcomes.benchmarks():
        for place, why in _differing(outcomes, name).items():
            out.setdefault(place, {})[name] = why
    trials = [
        dataclasses.replace(t, runs=[_without(r, out.get((t.name, r.seed), {})) for r in t.runs])
        for t in outcomes.trials
    ]
    differ = [
        outcomes_lib.LeftOut(trial, seed, f"{run_folder.EVAL}/{name}.json", why)
        for (trial, seed), of_run in out.items()
        for name, why in of_run.items()
    ]
    left_out = [*outcomes.left_out, *differ]
    return dataclasses.replace(outcomes, trials=trials, left_out=left_out)


def _differing(outcomes: outcomes_lib.Outcomes, name: str) -> dict[tuple[str, int], str]:
    """{(trial, seed): why} of the finished runs whose evaluation differs."""
    differ: dict[tuple[str, int], str] = {}
    groups: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for trial in outcomes.trials:
        for run in trial.finished():
            if name not in run.results:
                continue
            if why := _not_asked(outcomes, trial, name, run.results[name]):
                differ[trial.name, run.seed] = why
            else:
                groups[json.dumps(_asked(run.results[name]))].append((trial.name, run.seed))
    known: dict[str, Any] = {}
    sizes = {
        key: (len(of_one), json.loads(key)["questions"] or 0) for key, of_one in groups.items()
    }
    for key in sorted(groups, key=lambda key: sizes[key], reverse=True):
        own = json.loads(key)
        others = [
            f"{field.replace('_', ' ')} {value}, not {known[field]}"
            for field, value in own.items()
            if field in known and known[field] != value
        ]
        if others:
            differ |= dict.fromkeys(groups[key], f"differs from the others: {'; '.join(others)}")
        else:
            known |= own
    return differ


def _not_asked(
    outcomes: outcomes_lib.Outcomes, trial: outcomes_lib.Trial, name: str, result: outcomes_lib.Json
) -> str:
    asked = [one for one in outcomes.study.benchmarks if outcomes_lib.stem(one) == name]
    step, whys = result.get("step"), []
    if asked and "limit" in result and result["limit"] != asked[0].limit:
        whys.append(f"limit {_limit(result['limit'])}, the study asks {_limit(asked[0].limit)}")
    if trial.steps is not None and step not in (None, trial.steps):
        whys.append(f"of step {step}, the study trains {messages.counted(trial.steps, 'step')}")
    return "; ".join(whys)


def _asked(result: outcomes_lib.Json) -> dict[str, Any]:
    """What has to be equal, as far as it is known."""
    row = result["table"][-1]
    kept = {key: result[key] for key in ("benchmark", "metric") if key in result}
    return {"questions": row.get("n"), **kept, **dict(sorted(protocol(result).items()))}


def _limit(limit: int | None) -> str:
    return "none" if limit is None else str(limit)


def _without(run: outcomes_lib.Run, names: dict[str, str]) -> outcomes_lib.Run:
    return dataclasses.replace(
        run,
        results={k: v for k, v in run.results.items() if k not in names},
        answers={k: v for k, v in run.answers.items() if k[0] not in names},
    )
