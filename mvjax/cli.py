"""The `mvjax` command: parses arguments and calls the library; each subcommand imports what it needs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

DEBUG = "MVJAX_DEBUG"  # set to 1 to see where an error came from
USER_ERROR = 2
STOPPED = 143  # what a shell reports for a process that SIGTERM ended


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status; a user's error is one message, no traceback."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get(DEBUG) == "1":
            raise
        print(f"mvjax {args.command}: {error}\n({DEBUG}=1 shows where)", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"mvjax {args.command}: interrupted", file=sys.stderr)
        return 130


def quickstart(args: argparse.Namespace) -> int:
    """The whole chain in the digits world."""
    from mvjax.eval import quickstart as quickstart_lib

    return quickstart_lib.run(args.out, short=args.short)


def train(args: argparse.Namespace) -> int:
    """Trains, or resumes."""
    from mvjax import config_text
    from mvjax.train import fit

    run = config_text.load_experiment(args.experiment, pick=args.pick)
    summary = fit.fit(config_text.override(run, args.set), args.out)
    return 0 if summary.finished else STOPPED


def evaluate(args: argparse.Namespace) -> int:
    """Asks held-out questions; writes RUN/eval/digits.json."""
    from mvjax.eval import benchmarks, metrics, subject
    from mvjax.train import load

    trained = load.trained(args.run_folder)
    model = subject.load(trained.config, trained.params)
    questions = benchmarks.digits_questions(per_kind=args.per_kind, seed=args.seed)
    modes = args.prompt or list(benchmarks.MODES)
    answers = {mode: benchmarks.evaluate_digits(model, questions, mode) for mode in modes}
    rows = benchmarks.accuracy_table(answers)
    print(metrics.text_table(rows))
    path = args.run_folder / "eval" / "digits.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"step": trained.step, "table": rows}, indent=1) + "\n")
    return 0


def export(args: argparse.Namespace) -> int:
    """Writes an upstream runtime's folder, runs it, and certifies that it agrees."""
    import numpy as np

    from mvjax.train import load
    from mvjax.weights import certificate, model_card
    from mvjax.weights import export as export_lib

    trained = load.trained(args.run_folder)
    model = trained.config.model
    results = model_card.read_results(args.run_folder, step=trained.step)
    how = {"dtype": args.dtype, "quantisation": args.quantise}
    export_lib.export(trained.params, trained.config, args.target, args.out, results=results, **how)
    rng = np.random.default_rng(0)
    side, users = model.siglip.image_size, model.codebooks - 1 - model.codebooks_out
    result = certificate.certify(
        trained.params,
        trained.config,
        args.out,
        args.target,
        pixels=rng.uniform(-1, 1, (1, side, side, 3)).astype(np.float32),
        user_codes=rng.integers(0, model.audio_vocab, (users, args.frames)).astype(np.int32),
        **how,
    )
    print(f"{args.out}: {certificate.summary(result)}")
    return 1 if result["verdict"] == "fail" else 0


def data_digits(args: argparse.Namespace) -> int:
    """Makes the digits world's records."""
    from mvjax.tiny import records

    records.prepare(args.out, dialogues=args.dialogues, seed=args.seed)
    return 0


def show(args: argparse.Namespace) -> int:
    """Prints config and parameter table; makes no parameter."""
    from mvjax import config_text, tree
    from mvjax.train import load, sharding

    run = config_text.load_experiment(args.experiment, pick=args.pick)
    run = config_text.override(run, args.set)
    shapes = load.shapes(run)
    mesh = sharding.abstract_mesh(run.mesh)
    table = sharding.explain(tree.merge(*shapes), mesh, trained=shapes.adapters)
    parts = "; ".join(f"{name} {count:,}" for name, count in load.counts(run).items())
    print(f"{config_text.to_text(run)}\nparameters: {parts}\n\n{table}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mvjax",
        description="Train vision-speech models of the MoshiVis kind; run them anywhere.",
        epilog="first time: mvjax quickstart --out runs/quickstart",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add = _command(
        commands, "quickstart", quickstart, "the whole chain on a laptop CPU, with a report",
        "mvjax quickstart --out runs/quickstart",
    )  # fmt: skip
    add(
        "--out",
        type=Path,
        default=Path("runs/quickstart"),
        metavar="DIR",
        help="default: %(default)s",
    )
    add("--short", action="store_true", help="few steps: shows that it works, not that it learns")

    add = _command(
        commands, "train", train, "train an experiment; run it again to resume",
        "mvjax train experiments/digits.py --set optim.learning_rate=1e-3 --out runs/digits",
    )  # fmt: skip
    _add_experiment(add)
    add("--out", type=Path, required=True, metavar="RUN", help="run folder, new or to be resumed")

    _add_uses_of_a_run(commands)
    data = commands.add_parser("data", help="make records").add_subparsers(
        dest="dataset", required=True, metavar="DATASET"
    )
    add = _command(
        data, "digits", data_digits, "the digits world: images, talk, speech, codes",
        "mvjax data digits --out data/digits",
    )  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="folder of records")
    add("--dialogues", type=int, default=600, metavar="N", help="spoken ones (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")

    add = _command(
        commands, "show", show, "print an experiment's config and its parameters' sizes and places",
        "mvjax show experiments/moshika_vis.py",
    )  # fmt: skip
    _add_experiment(add)
    return parser


def _add_uses_of_a_run(commands) -> None:
    add = _command(
        commands, "eval", evaluate, "ask a trained run held-out questions",
        "mvjax eval runs/digits --prompt text --prompt audio",
    )  # fmt: skip
    add("run_folder", type=Path, metavar="RUN", help="run folder of `mvjax train`")
    add(
        "--prompt", action="append", choices=("text", "audio", "blind", "shuffled"),
        help="how to ask, may be repeated; default: all four",
    )  # fmt: skip
    add("--per-kind", type=int, default=24, metavar="N", help="questions a kind (%(default)s)")
    add("--seed", type=int, default=1, help="of images and wording (%(default)s)")

    add = _command(
        commands, "export", export, "write a ready-to-serve folder with its parity certificate",
        "mvjax export runs/digits --target mlx --quantise q8 --out exported/digits",
    )  # fmt: skip
    add("run_folder", type=Path, metavar="RUN", help="run folder of `mvjax train`")
    add(
        "--target", "--to", choices=("torch", "mlx", "candle"), required=True,
        help="the runtime that will run it",
    )  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add(
        "--dtype", choices=("float32", "bfloat16"),
        help="of the weights, mixed as in upstream's file; default: as they were trained",
    )  # fmt: skip
    add(
        "--quantise", "--quantize", choices=("q8", "q4", "q8_0"),
        help="q8 or q4 for mlx, q8_0 (a GGUF) for candle",
    )  # fmt: skip
    add("--frames", type=int, default=120, metavar="N", help="frames to compare (%(default)s)")
    add("--list", action=_ListTargets, help="print which designs each target can run, and why not")


class _ListTargets(argparse.Action):
    """Prints the compatibility matrix and stops, as `--help` does, whatever else is missing."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mvjax.weights import targets

        print(targets.table())
        parser.exit()


def _command(commands, name, run, summary, example):
    """Adds a subcommand; returns its `add_argument`."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser.add_argument


def _add_experiment(add) -> None:
    add("experiment", type=Path, metavar="EXP.py", help="defines config(), or sweep() by name")
    add("--pick", metavar="NAME", help="which config of a sweep")
    add(
        "--set", action="append", default=[], metavar="PATH=VALUE",
        help="override a field, such as train.steps=100; may be repeated",
    )  # fmt: skip
