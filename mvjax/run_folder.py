"""Names of the files in a run folder (`mvjax train --out RUN`) and in the quickstart folder around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mvjax import files, messages
from mvjax.stores import places

# Written by `mvjax train`.
CONFIG_TEXT = "config.txt"  # the config as `field = value` lines, to read and to diff
CONFIG_JSON = "config.json"  # the same config; resume, eval and export read this one
METRICS = "metrics.jsonl"  # one JSON object per logged step
DAMAGED_METRICS = "metrics.damaged.jsonl"  # lines of it that a resume could not read
TENSORBOARD = "tensorboard"  # event files of the same values
WANDB = "wandb.json"  # the run's id at Weights & Biases, whose own files are below wandb/
CHECKPOINTS = "checkpoints"  # one folder per saved step, NNNNNNNN/; see train/checkpoint.py
MIXTURE = "mixture.json"  # sampling weights of the datasets, and the steps at which they changed
SUMMARY = "summary.json"  # how the last session ended
BAD_RECORDS = "bad_records.jsonl"  # skipped records by id; process k > 0 writes k.bad_records.jsonl
WAITING = "waiting"  # while a step takes too long: what each process is blocked on
LOCK = "lock"  # while a run trains: by which process
PROFILE = "profile"  # profiler traces (--profile), one folder per process

# Written by evaluation.
# NAME.json: scores of a benchmark, which the model card quotes of the exported step;
# NAME.samples.jsonl: every answer, NAME.samples.identity: to what; NAME.lock while it is evaluated;
# training/: the same of evaluations while it trains
EVAL = "eval"

# Written by `mvjax sweep`: into OUT, and into OUT/TRIAL/seed-N, which is a run folder; docs/sweeps.md.
SWEEP = "sweep.json"
TRIAL = "trial.json"

# Written by `mvjax quickstart --out DIR`, beside its run folder.
REPORT = "report.html"  # one page, no network needed
QUICKSTART_METRICS = "metrics.json"  # accuracies, certificates, seconds and memory of each stage
QUESTION_IMAGE = "question/image.png"  # of a held-out digit, for `mvjax talk`
QUESTION_AUDIO = "question/question.wav"  # which digit it is, asked by a held-out voice
ERROR_LOG = "error.log"  # the traceback of a stage that failed


class RunStep(NamedTuple):
    """A run folder and the step of one of its checkpoints; None: the newest."""

    folder: Path
    step: int | None

    def __str__(self) -> str:
        """As it was written."""
        folder = places.named(self.folder)
        return folder if self.step is None else f"{folder}@{self.step}"


def parse(text: str) -> RunStep:
    """Reads RUN or RUN@STEP; a folder whose name is the whole text is meant as such.

    Raises:
      ValueError: if STEP is no number, or RUN neither a path on this machine nor a folder of a store.
    """
    folder, at, step = text.rpartition("@")
    whole = files.output(text)
    if not at or whole.is_dir():
        return RunStep(whole, None)
    if not step.isdecimal():
        raise ValueError(
            f"{text}: expected RUN@STEP, such as runs/digits@300, got '{step}' as STEP"
        )
    return RunStep(files.output(folder), int(step))


def bad_records(part: int) -> str:
    """Returns the file in which the process that reads part `part` of every batch lists skipped records."""
    return BAD_RECORDS if part == 0 else f"{part}.{BAD_RECORDS}"


def is_run(folder: Path) -> bool:
    """Whether `mvjax train` made the folder."""
    return (folder / CONFIG_JSON).is_file() and (folder / CONFIG_TEXT).is_file()


def nearby(folder: Path, is_meant: Callable[[Path], bool]) -> str:
    """Returns "; did you mean FOLDERS?": those of a kind in this folder, else around it; "" if none."""
    parents = [place for place in folder.parents if place.name][:2] or [folder.parent]
    around = [[place, *sorted(place.glob("*"))] for place in parents]
    for found in (sorted([*folder.glob("*"), *folder.glob("*/*")]), *around):
        if meant := [path for path in found if is_meant(path)]:
            return f"; did you mean {messages.names(meant, shown=4)}?"
    return ""
