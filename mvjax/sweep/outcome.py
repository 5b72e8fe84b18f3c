"""What is done of a run of a sweep, as the files of its folder say it, and its trial.json."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mvjax import files, messages, run_folder
from mvjax.config import study as study_lib
from mvjax.sweep import trials
from mvjax.train import resume

TRIAL = run_folder.TRIAL
LOG = "trial.log"  # what the commands of a run printed
LOCK = "trial.lock"  # while a sweep works on the run

State = Literal["running", "stopped", "finished", "failed"]


@dataclasses.dataclass
class Outcome:
    """What became of a run; docs/sweeps.md describes it as it is written."""

    name: str
    seed: int
    state: State = "running"
    error: str | None = None
    seconds: float = 0.0
    parameters: dict[str, int] | None = None
    flops_per_frame: float | None = None
    bytes_per_frame: float | None = None


def read(run: trials.TrialRun) -> Outcome:
    """Returns what is known of a run; a new outcome if nothing is."""
    new = Outcome(run.name, run.seed)
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):  # none, or damaged
        return dataclasses.replace(new, **json.loads((run.folder / TRIAL).read_bytes()))
    return new


def write(run: trials.TrialRun, outcome: Outcome) -> None:
    """Writes trial.json."""
    run.folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(dataclasses.asdict(outcome), indent=1) + "\n"
    files.write_atomic(run.folder / TRIAL, content.encode())


def check(runs: Sequence[trials.TrialRun]) -> None:
    """Checks that the folders hold no runs of other configs.

    Raises:
      ValueError: naming each that does; of the first the fields that differ.
    """
    bad = []
    for run in runs:
        try:
            resume.check_config(run.folder, run.config)
        except ValueError as error:
            bad.append((str(run), error))
    if bad:
        others = messages.names([name for name, _ in bad[1:]], shown=8)
        raise ValueError(f"{bad[0][1]}" + (f"\nSo do the folders of {others}." if bad[1:] else ""))


def trained(run: trials.TrialRun) -> bool:
    """Whether the run has done all its steps.

    Raises:
      ValueError: if the folder holds a run of another config.
    """
    return resume.finished(run.folder, run.config, extend=False) is not None


def evaluated(sweep: trials.Sweep, run: trials.TrialRun, asked: study_lib.Asked) -> bool:
    """Whether a benchmark was asked as the study and its protocol say it, after the last step."""
    result = scores(run, asked)
    if result is None:
        return False
    if "limit" not in result:  # of an earlier version
        return False
    same = result["step"] == run.config.train.steps and result["limit"] == asked.limit
    asking = sweep.asking.get(asked.benchmark)
    prompts = asked.prompts if asking is None else asking.modes
    same = same and all(prompt in result["table"][-1] for prompt in prompts)
    return same and not sweep.replaces(run, asked)


def scores(run: trials.TrialRun, asked: study_lib.Asked) -> dict[str, Any] | None:
    """Returns a benchmark's results; None if there are none."""
    try:
        result = json.loads(result_path(run, asked).read_bytes())
        return result if isinstance(result["table"][-1], dict) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        return None


def result_path(run: trials.TrialRun, asked: study_lib.Asked) -> Path:
    """Returns where `mvjax eval` writes; a benchmark in a file is named after it."""
    return run.folder / run_folder.EVAL / f"{Path(asked.benchmark).stem}.json"


def progress(run: trials.TrialRun) -> str:
    """Returns "step 40/400", or "" before the first line of metrics.jsonl."""
    try:
        with (run.folder / run_folder.METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 65536))
            lines = file.read().split(b"\n")
        step = json.loads(lines[-2])["step"]  # what follows the last line break may be cut short
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""
    return f"step {step}/{run.config.train.steps}"
