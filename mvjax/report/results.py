"""Reads what evaluations left in a run folder; what has not the form of a result is told, not passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from mvjax import messages, run_folder

MODES = ("text", "audio", "blind", "shuffled")  # as `eval.benchmarks.MODES`, in the order of tables

Json = dict[str, Any]


class Results(NamedTuple):
    """The evaluations of one run."""

    results: dict[str, Json]  # by benchmark
    answers: dict[tuple[str, str], dict[str, float]]  # {(benchmark, mode): {sample id: score}}
    faults: list[tuple[str, str]]  # (file, what is wrong with it)


def read(folder: Path, asked: Collection[str]) -> Results:
    """Reads every RUN/eval/NAME.json that a benchmark wrote, and the answers beside it.

    Other JSON objects in the folder are no benchmark's, except under the names that are `asked`.
    """
    found = Results({}, {}, [])
    for path in sorted((folder / run_folder.EVAL).glob("*.json")):
        if "@" in path.stem:
            continue
        try:
            result = load(path)
            own = path.stem in asked or path.with_suffix(".samples.identity").exists()
            if isinstance(result, dict) and "table" not in result and not own:
                continue
            _check(result)
        except (ValueError, OSError) as error:
            found.faults.append((f"{run_folder.EVAL}/{path.name}", str(error)))
            continue
        found.results[path.stem] = result
        if fault := _answers(found, path.with_suffix(".samples.jsonl"), path.stem):
            found.faults.append((f"{run_folder.EVAL}/{path.stem}.samples.jsonl", fault))
    return found


def load(path: Path) -> Any:
    """Returns JSON values.

    Raises:
      ValueError: if it is none; without the path.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"expected JSON: {error}") from error


def is_number(value: Any, *, none: bool = True) -> bool:
    """Whether a JSON value is a finite number, or null where that is allowed."""
    if value is None:
        return none
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(result: Any) -> None:
    """Raises ValueError if a result has not the form that docs/evaluation.md describes."""
    table = result.get("table") if isinstance(result, dict) else None
    if not isinstance(table, list) or not table or not all(isinstance(row, dict) for row in table):
        raise ValueError("expected an object with a table of rows, found none")
    if not all(isinstance(row.get("kind"), str) for row in table) or table[-1]["kind"] != "all":
        raise ValueError("table: expected a kind in each row, 'all' in the last, found others")
    for row in table:
        for name in ("n", "chance", "turns", *MODES):
            if not is_number(row.get(name)):
                raise ValueError(
                    f"table: {row['kind']}: {name}: expected a number, got {row[name]!r}"
                )
    for name in ("protocol", "intervals", "gates"):
        if not isinstance(result.get(name, {}), dict):
            raise ValueError(f"{name}: expected an object, got {result[name]!r}")
    words = {"metric": str, "benchmark": str}
    for name, kind in {**words, "limit": int | None, "step": int}.items():
        if name in result and not isinstance(result[name], kind):
            expected = "text" if name in words else "a whole number"
            raise ValueError(f"{name}: expected {expected}, got {result[name]!r}")
    numbers = {**result.get("intervals", {}), **result.get("gates", {})}
    for name, values in numbers.items():
        size = 2 if name in result.get("intervals", {}) else None
        whole = isinstance(values, list) and all(is_number(one, none=False) for one in values)
        if not whole or not values or (size and len(values) != size):
            raise ValueError(f"{name}: expected {size or 'some'} numbers, got {values!r}")


def _answers(found: Results, path: Path, name: str) -> str | None:
    """Adds the scored answers, if they are those of the result; returns what is wrong with them."""
    if not path.is_file():
        return None
    *whole, last = path.read_bytes().split(b"\n")  # of an evaluation that was killed it may be cut
    del last
    scores: dict[str, dict[str, float]] = {}
    damaged = 0
    for raw in whole:
        try:
            line = json.loads(raw)
            mode, identity, score = line["mode"], line["id"], line["score"]
            if not (isinstance(mode, str) and isinstance(identity, str) and is_number(score)):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            damaged += 1
            continue
        if score is not None:
            scores.setdefault(mode, {})[identity] = float(score)
    row = found.results[name]["table"][-1]
    faults = [f"{messages.counted(damaged, 'line')} damaged"] if damaged else []
    if not whole:
        faults.append("no answers")
    for mode, of_mode in scores.items():
        count = row.get("n", len(of_mode))
        if row.get(mode) is not None and len(of_mode) == count:
            found.answers[name, mode] = of_mode
        elif row.get(mode) is not None:
            faults.append(f"{mode}: {len(of_mode)} answers, the result has {count}")
    return f"{'; '.join(faults)}: not tested over questions" if faults else None
