"""Names of the files in a run folder (`mvjax train --out RUN`) and in the quickstart folder around it."""

# Written by `mvjax train`.
CONFIG_TEXT = "config.txt"  # the config as `field = value` lines, to read and to diff
CONFIG_JSON = "config.json"  # the same config; resume, eval and export read this one
METRICS = "metrics.jsonl"  # one JSON object per logged step
TENSORBOARD = "tensorboard"  # event files of the same values
CHECKPOINTS = "checkpoints"  # one folder per saved step, NNNNNNNN/; see train/checkpoint.py
MIXTURE = "mixture.json"  # sampling weights of the datasets, and the steps at which they changed
SUMMARY = "summary.json"  # how the last session ended
BAD_RECORDS = "bad_records.jsonl"  # skipped records by id; process k > 0 writes k.bad_records.jsonl
WAITING = "waiting"  # while a step takes too long: what each process is blocked on
PROFILE = "profile"  # profiler traces (--profile), one folder per process

# Written by evaluation.
EVAL = "eval"  # NAME.json: accuracy table of a benchmark; the model card quotes those of the exported step
ANSWERS = f"{EVAL}/answers.json"  # every question and answer of a quickstart's evaluation

# Written by `mvjax quickstart --out DIR`, beside its run folder.
REPORT = "report.html"  # one page, no network needed
QUICKSTART_METRICS = "metrics.json"  # accuracies, certificates, seconds and memory of each stage
ERROR_LOG = "error.log"  # the traceback of a stage that failed


def bad_records(part: int) -> str:
    """Returns the file in which the process that reads part `part` of every batch lists skipped records."""
    return BAD_RECORDS if part == 0 else f"{part}.{BAD_RECORDS}"
