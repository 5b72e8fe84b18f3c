"""`mvjax quickstart`, `train` and `show`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from mvjax import files, messages, run_folder
from mvjax.commands import arguments, evaluate, extras, plan
from mvjax.stores import places, staging


def add(commands) -> None:
    """Adds the subcommands."""
    arg = arguments.command(
        commands, "quickstart", quickstart, "the whole chain on a laptop CPU, with a report",
        "mvjax quickstart --out runs/quickstart")  # fmt: skip
    arg("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR",
        help="folder of the run, the exports and the report (%(default)s)")  # fmt: skip
    arg("--short", action="store_true", help="few steps: shows that it works, not that it learns")

    arg = arguments.command(
        commands, "train", train, "train an experiment; run it again to resume",
        "mvjax train experiments/digits.py --set optim.learning_rate=1e-3 --out runs/digits")  # fmt: skip
    arguments.experiment(arg)
    arg("--out", type=arguments.place, required=True, metavar="RUN",
        help="run folder, new or to be resumed; gs:// and s3:// too")  # fmt: skip
    arg("--extend", action="store_true",
        help="go on with RUN for more steps, or with another learning rate, as --set says")  # fmt: skip
    arg("--from", type=arguments.stored_run_step, metavar="RUN[@STEP]", dest="warm_start",
        help="start a new run from the adapters of another one")  # fmt: skip
    arg("--dry-run", action="store_true",
        help="check files, records, mesh and memory without a step; write nothing")  # fmt: skip
    arg("--topology", action="append", default=[], metavar="CHIP:SHAPE",
        help="with --dry-run: mesh, memory and time on these devices, as of mvjax plan")  # fmt: skip
    arg("--slices", type=int, default=1, metavar="N",
        help="with --topology: so many TPU slices or GPU nodes of each, as of mvjax plan")  # fmt: skip
    arg("--finished", type=arguments.place, metavar="RUN", action=_Finished,
        help="stop, with status 0 if RUN has done all its steps, else 1; for scripts")  # fmt: skip
    arg("--profile", metavar="A:B",
        help="trace these steps into RUN/profile, for TensorBoard, xprof")  # fmt: skip
    arg(
        "--evaluate", metavar="NAME:N",
        help="every N steps, ask 64 written questions of a benchmark, such as digits:100 (config.evals, which"
        " also says where public data lie: EvalConfig(..., data=ROOT))",
    )  # fmt: skip

    arg = arguments.command(
        commands, "show", show, "print an experiment's config, parameters and shardings",
        "mvjax show experiments/moshika_vis.py")  # fmt: skip
    arguments.experiment(arg)


class _Finished(argparse.Action):
    """Says whether a run is finished and stops, as `--help` does, whatever else is missing."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Acts when the parser meets the option."""
        run = places.named(values)
        try:
            path = staging.here(files.local(run) / run_folder.SUMMARY)
            done = json.loads(path.read_bytes())["finished"] is True
        except (FileNotFoundError, NotADirectoryError):  # not even begun, or never stopped in order
            done = False
        except (ValueError, LookupError, TypeError, OSError, ModuleNotFoundError) as error:
            parser.error(f"--finished {run}: {places.named(error)}")
        parser.exit(0 if done else 1)


def quickstart(args: argparse.Namespace) -> int:
    """The whole chain in the digits world."""
    extras.require("jax")
    arguments.check_writable(args.out / run_folder.REPORT)
    from mvjax.digits import quickstart as quickstart_lib

    return quickstart_lib.run(args.out, short=args.short)


def train(args: argparse.Namespace) -> int:
    """Trains, or resumes; on SIGTERM or SIGINT the run saves a checkpoint, and the status is 0, too."""
    starts = {"extend": args.extend, "warm_start": args.warm_start}
    if args.topology:
        return _dry_run_elsewhere(args, starts)
    if args.slices != 1:
        raise ValueError(
            f"--slices {args.slices}: expected --dry-run --topology CHIP:SHAPE with it; `mvjax train` trains"
            " on the devices that are here"
        )
    from mvjax.train import distributed, fit, signals, trace

    profile = trace.parse(args.profile) if args.profile else None
    _check_out(args.out)
    on_store = places.url(args.out) is not None
    try:
        with distributed.session(None if on_store else args.out), _here(args):
            run = _load(args)
            if distributed.is_first():
                _tell_changes(args, run)
                _tell_late(run)
            if args.dry_run:
                from mvjax.plan import dry_run

                return dry_run.check(run, args.out, **starts)
            fit.fit(run, args.out, callbacks=_callbacks(run, args.out), profile=profile, **starts)
    except signals.Stopped as stopped:  # before it trained; it has been said
        signals.end(stopped.status)
    return 0


def _dry_run_elsewhere(args: argparse.Namespace, starts) -> int:
    """What a dry run checks but the devices that are here, and the plan of the step on those named."""
    if not args.dry_run:
        raise ValueError(
            "--topology: expected --dry-run with it; `mvjax train` trains on the devices that are here"
        )
    _check_out(args.out)
    topologies = plan.read_topologies(args.topology, measured=False, slices=args.slices)
    from mvjax.plan import dry_run

    with _here(args):
        run = _load(args)
        _tell_changes(args, run)
        dry_run.check(run, args.out, topologies=topologies, **starts)
    print()
    return plan.show(run, topologies, measured=False)


@contextlib.contextmanager
def _here(args: argparse.Namespace):
    """While this lasts, the runs of stores that are trained and started from are on this machine."""
    from mvjax.train import run_store

    with contextlib.ExitStack() as stack:
        if args.warm_start:
            stack.enter_context(run_store.opened(args.warm_start.folder, dry=True))
        stack.enter_context(run_store.opened(args.out, dry=args.dry_run))
        _check_out(args.out)
        yield


def _load(args: argparse.Namespace):
    run = arguments.load_experiment(args)
    added = _evaluation(args.evaluate) if args.evaluate else ()
    return dataclasses.replace(run, evals=(*run.evals, *added))


def _tell_changes(args: argparse.Namespace, run) -> None:
    """Says in what a run differs from the saved config that it was read from."""
    if not (saved := arguments.saved_config(args.experiment)):
        return
    from mvjax.config import text

    changed = text.differences(arguments.read_experiment(saved), run)
    listed = messages.names(f"{path} {old!r} -> {new!r}" for path, (old, new) in changed.items())
    print(f"{saved}: {f'with {listed}' if changed else 'as it was saved'}", file=sys.stderr)


def _tell_late(run) -> None:
    """Says which evaluations a run is too short for."""
    for asked in run.evals:
        if asked.every > run.train.steps:
            print(
                f"evals: {asked.benchmark} is never asked: every {asked.every} steps, of {run.train.steps}",
                file=sys.stderr,
            )


def _check_out(out: Path) -> None:
    """Refuses a file, and a folder that holds runs, such as a quickstart's, and is none itself."""
    arguments.check_folder(out)
    runs = [path for path in sorted(out.glob("*")) if run_folder.is_run(path)]
    if runs and not run_folder.is_run(out):
        raise ValueError(
            f"--out {out}: expected a run folder, new or to be resumed, got a folder of runs;"
            f" did you mean {messages.names(runs, shown=4)}?"
        )


def _evaluation(text: str):
    """Reads NAME:N; returns what it adds to `config.evals`."""
    from mvjax.config import evaluating

    name, _, every = text.rpartition(":")
    if not (name and every.isdecimal() and int(every)):
        raise ValueError(
            f"--evaluate {text}: expected NAME:N, a benchmark and the steps between evaluations"
        )
    evaluate.find(name, option="--evaluate")
    return (evaluating.EvalConfig(name, every=int(every)),)


def _callbacks(run, folder: Path) -> list:
    """The callbacks of `config.evals`."""
    if not run.evals:
        return []
    from mvjax.eval import during_training

    names = [asked.benchmark for asked in run.evals]
    if len(set(names)) < len(names):
        raise ValueError(f"evals: expected each benchmark once, got {messages.names(names)}")
    made = []
    for asked in run.evals:
        data = None if asked.data is None else files.local(asked.data)
        benchmark = evaluate.find(asked.benchmark, option="evals")(data)
        made.append(during_training.callback(run, folder, benchmark, asked))
    return made


def show(args: argparse.Namespace) -> int:
    """Prints the config and the parameter table, without creating a parameter."""
    from mvjax import tree
    from mvjax.config import text as config_text
    from mvjax.train import load, sharding

    run = arguments.load_experiment(args)
    shapes = load.abstract_params(run)
    mesh = sharding.abstract_mesh(run.mesh)
    table = sharding.explain(tree.merge(*shapes), mesh, trained=shapes.adapters)
    parts = "; ".join(f"{name} {count:,}" for name, count in load.counts(run).items())
    print(f"{config_text.to_text(run)}\nparameters: {parts}\n\n{table}")
    return 0
