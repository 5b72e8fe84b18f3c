"""`mvjax eval`: asks a trained run the questions of a benchmark."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mvjax.commands import arguments


def _digits():
    from mvjax.digits import benchmark

    return benchmark.DigitsBenchmark


def _digits_hard():
    from mvjax.digits.hard import benchmark

    return benchmark.HardDigitsBenchmark


def _digits_switch():
    from mvjax.digits.hard import switch

    return switch.DigitsSwitchBenchmark


# {name: returns the class} of the digits worlds; all others are found by `mvjax.eval.discovery`
DIGITS = {"digits": _digits, "digits-hard": _digits_hard, "digits-switch": _digits_switch}
PROMPTS = ("text", "audio", "blind", "shuffled")  # `benchmarks.MODES`, whose import takes numpy


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "eval", evaluate, "ask a trained run the questions of a benchmark",
        "mvjax eval runs/digits --benchmark digits --prompt text --prompt audio")  # fmt: skip
    arguments.trained_run(arg)
    arg("--benchmark", default="digits", metavar="NAME",
        help="one that --benchmarks lists, or a file that defines one (%(default)s)")  # fmt: skip
    arg("--benchmarks", action=arguments.Listing, const=_listed, help="list the benchmarks")
    arg("--data", type=Path, metavar="ROOT",
        help="folder that local copies of public data lie below")  # fmt: skip
    arg("--prompt", action="append", choices=PROMPTS,
        help="written questions, spoken ones, written without the image, or written with the image of"
        " another question; may be repeated (all that the benchmark has)")  # fmt: skip
    arg("--limit", type=int, metavar="N", help="ask N questions, for a first look (all)")
    arg("--seed", type=int, default=1, help="random seed of the questions (%(default)s)")


def evaluate(args: argparse.Namespace) -> int:
    """Prints the table of scores and writes it to RUN/eval/NAME.json, or NAME@STEP.json."""
    make = find(args.benchmark, option="--benchmark")
    from mvjax import run_folder
    from mvjax.eval import metrics, runner
    from mvjax.eval import model as eval_model
    from mvjax.train import load

    trained = load.trained(*args.trained_run)
    model = eval_model.load(trained.config, trained.params)
    benchmark = make(args.data)
    modes = args.prompt or make.modes
    table = runner.evaluate(model, benchmark, benchmark.samples(args.limit, args.seed), modes).table
    print(metrics.text_table(table))
    folder, step = args.trained_run
    name = make.name if step is None else f"{make.name}@{step}"
    path = folder / run_folder.EVAL / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"step": trained.step, "table": table}, indent=1) + "\n")
    return 0


def find(name: str, *, option: str):
    """Returns the class of a benchmark; an unknown name is an error of the option."""
    if name in DIGITS:
        return DIGITS[name]()
    from mvjax.eval import discovery

    return discovery.find(name, option=option, others=DIGITS)


def _listed() -> str:
    from mvjax.eval import discovery

    return "\n".join(sorted([*DIGITS, *discovery.names()]))
