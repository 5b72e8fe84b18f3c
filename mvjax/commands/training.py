"""`mvjax quickstart`, `train` and `show`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mvjax.commands import arguments


def add(commands) -> None:
    """Adds the subcommands."""
    arg = arguments.command(
        commands, "quickstart", quickstart, "the whole chain on a laptop CPU, with a report",
        "mvjax quickstart --out runs/quickstart",
    )  # fmt: skip
    arg(
        "--out",
        type=Path,
        default=Path("runs/quickstart"),
        metavar="DIR",
        help="default: %(default)s",
    )
    arg("--short", action="store_true", help="few steps: shows that it works, not that it learns")

    arg = arguments.command(
        commands, "train", train, "train an experiment; run it again to resume",
        "mvjax train experiments/digits.py --set optim.learning_rate=1e-3 --out runs/digits",
    )  # fmt: skip
    arguments.experiment(arg)
    arg("--out", type=Path, required=True, metavar="RUN", help="run folder, new or to be resumed")
    arg(
        "--profile",
        metavar="A:B",
        help="trace these steps into RUN/profile, for xprof or TensorBoard",
    )

    arg = arguments.command(
        commands, "show", show, "print an experiment's config and its parameters' sizes and places",
        "mvjax show experiments/moshika_vis.py",
    )  # fmt: skip
    arguments.experiment(arg)


def quickstart(args: argparse.Namespace) -> int:
    """The whole chain in the digits world."""
    from mvjax.digits import quickstart as quickstart_lib

    return quickstart_lib.run(args.out, short=args.short)


def train(args: argparse.Namespace) -> int:
    """Trains, or resumes; a run that a signal stopped has saved and says so, which is no failure."""
    from mvjax.config import text as config_text
    from mvjax.train import distributed, fit, trace

    profile = trace.parse(args.profile) if args.profile else None
    with distributed.session():
        run = config_text.load_experiment(args.experiment, pick=args.pick)
        fit.fit(config_text.override(run, args.set), args.out, profile=profile)
    return 0


def show(args: argparse.Namespace) -> int:
    """Prints config and parameter table; makes no parameter."""
    from mvjax import tree
    from mvjax.config import text as config_text
    from mvjax.train import load, sharding

    run = config_text.load_experiment(args.experiment, pick=args.pick)
    run = config_text.override(run, args.set)
    shapes = load.abstract_params(run)
    mesh = sharding.abstract_mesh(run.mesh)
    table = sharding.explain(tree.merge(*shapes), mesh, trained=shapes.adapters)
    parts = "; ".join(f"{name} {count:,}" for name, count in load.counts(run).items())
    print(f"{config_text.to_text(run)}\nparameters: {parts}\n\n{table}")
    return 0
