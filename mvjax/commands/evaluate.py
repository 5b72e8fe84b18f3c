"""`mvjax eval`: asks a trained run the questions of a benchmark."""

from __future__ import annotations

import argparse
import json

from mvjax import messages
from mvjax.commands import arguments


def _digits():
    from mvjax.digits import benchmark

    return benchmark.DigitsBenchmark()


# {name: returns the benchmark}; how to add one: mvjax.eval.benchmarks
BENCHMARKS = {"digits": _digits}
PROMPTS = ("text", "audio", "blind", "shuffled")  # `benchmarks.MODES`, whose import takes seconds


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "eval", evaluate, "ask a trained run the questions of a benchmark",
        "mvjax eval runs/digits --benchmark digits --prompt text --prompt audio")  # fmt: skip
    arguments.trained_run(arg)
    arg("--benchmark", default="digits", metavar="NAME",
        help=f"one of: {', '.join(BENCHMARKS)} (%(default)s)")  # fmt: skip
    arg("--prompt", action="append", choices=PROMPTS,
        help="written questions, spoken ones, written without the image, or written with the image of"
        " another question; may be repeated (all four)")  # fmt: skip
    arg("--per-kind", type=int, default=24, metavar="N",
        help="questions of each kind (%(default)s)")  # fmt: skip
    arg("--seed", type=int, default=1, help="random seed of the questions (%(default)s)")


def evaluate(args: argparse.Namespace) -> int:
    """Prints the accuracy table and writes it to RUN/eval/NAME.json, or NAME@STEP.json."""
    make_benchmark = find(args.benchmark, option="--benchmark")
    from mvjax import run_folder
    from mvjax.eval import benchmarks, metrics
    from mvjax.eval import model as eval_model
    from mvjax.train import load

    trained = load.trained(*args.trained_run)
    model = eval_model.load(trained.config, trained.params)
    benchmark = make_benchmark()
    questions = benchmark.questions(per_kind=args.per_kind, seed=args.seed)
    modes = args.prompt or benchmarks.MODES
    table = benchmarks.evaluate(model, benchmark, questions, modes).table
    print(metrics.text_table(table))
    folder, step = args.trained_run
    name = args.benchmark if step is None else f"{args.benchmark}@{step}"
    path = folder / run_folder.EVAL / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"step": trained.step, "table": table}, indent=1) + "\n")
    return 0


def find(name: str, *, option: str):
    """Returns the function that makes a benchmark; an unknown name is an error of the option."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    raise ValueError(f"{option}: unknown {name!r}; {messages.did_you_mean(name, BENCHMARKS)}")
