"""`mvjax eval`: asks a trained run the questions of a benchmark."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mvjax.commands import arguments


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "eval", evaluate, "ask a trained run held-out questions",
        "mvjax eval runs/digits --prompt text --prompt audio",
    )  # fmt: skip
    arg("run_folder", type=Path, metavar="RUN", help="run folder of `mvjax train`")
    arg(
        "--prompt", action="append", choices=("text", "audio", "blind", "shuffled"),
        help="how to ask, may be repeated; default: all four",
    )  # fmt: skip
    arg("--per-kind", type=int, default=24, metavar="N", help="questions a kind (%(default)s)")
    arg("--seed", type=int, default=1, help="of images and wording (%(default)s)")


def evaluate(args: argparse.Namespace) -> int:
    """Asks held-out questions; writes RUN/eval/digits.json."""
    from mvjax import run_folder
    from mvjax.digits import benchmark
    from mvjax.eval import metrics
    from mvjax.eval import model as eval_model
    from mvjax.train import load

    trained = load.trained(args.run_folder)
    model = eval_model.load(trained.config, trained.params)
    questions = benchmark.digits_questions(per_kind=args.per_kind, seed=args.seed)
    modes = args.prompt or list(benchmark.MODES)
    answers = {mode: benchmark.evaluate_digits(model, questions, mode) for mode in modes}
    rows = benchmark.accuracy_table(answers)
    print(metrics.text_table(rows))
    path = args.run_folder / run_folder.DIGITS
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"step": trained.step, "table": rows}, indent=1) + "\n")
    return 0
