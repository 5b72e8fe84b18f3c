"""`mvjax sweep`: trains and evaluates the trials of an experiment file with several seeds."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from pathlib import Path

from mvjax import messages, run_folder
from mvjax.commands import arguments, evaluate

_REFRESH = 0.5  # seconds


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "sweep", sweep, "train and evaluate every trial of a sweep; run it again to continue",
        "mvjax sweep experiments/gate_ablation.py --seeds 3 --jobs 2 --out runs/gates")  # fmt: skip
    arg(
        "experiment",
        type=Path,
        metavar="EXP.py",
        help="defines sweep(), and study() for what to ask",
    )
    arg("--out", type=arguments.place, required=True, metavar="DIR",
        help="folder of the sweep, new or to be continued; gs:// and s3:// too")  # fmt: skip
    arg(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train every trial with seeds 0 to N - 1 (%(default)s)",
    )
    arg(
        "--pick",
        action="append",
        default=[],
        metavar="NAME",
        help="only this trial; may be repeated (all)",
    )
    arg("--set", action="append", default=[], metavar="PATH=VALUE",
        help="override a field in every trial, such as train.steps=100; may be repeated")  # fmt: skip
    arg("--data", type=Path, metavar="ROOT",
        help="folder of the benchmarks' public data, as of mvjax eval")  # fmt: skip
    arg("--jobs", type=int, default=1, metavar="N",
        help="runs at a time on this machine (%(default)s); on accelerators leave it at 1")  # fmt: skip
    arg("--threads", type=int, metavar="N", help="of each run on a CPU (the cores / --jobs)")
    arg("--dry-run", action="store_true",
        help="print what is left, a line of mvjax train and mvjax eval for each run")  # fmt: skip


def sweep(args: argparse.Namespace) -> int:
    """Runs what is left; the status is 1 if a run failed, and 128 + the signal's number if one stopped it."""
    if arguments.saved_config(args.experiment):
        raise ValueError(
            f"{args.experiment}: is the config of one run, which `mvjax train` takes; a sweep is an"
            " experiment file that defines sweep()"
        )
    threads = args.threads
    if threads is None:
        threads = max(1, (os.cpu_count() or 1) // max(1, args.jobs))
    for name, value in (("seeds", args.seeds), ("jobs", args.jobs), ("threads", threads)):
        if value < 1:
            raise ValueError(f"--{name}: expected at least 1, got {value}")
    arguments.check_folder(args.out)
    from mvjax.sweep import sweep_store

    with sweep_store.opened(args.out, dry=args.dry_run):
        return _run(args, threads)


def _run(args: argparse.Namespace, threads: int) -> int:
    from mvjax.sweep import board as board_lib
    from mvjax.sweep import outcome, running, trials

    how = {"picks": args.pick, "settings": args.set, "seeds": args.seeds, "data": args.data}
    chosen = trials.load(args.experiment, out=args.out, **how)
    chosen = dataclasses.replace(chosen, asking=_asking(chosen, dry=args.dry_run))
    outcome.check(chosen.runs())
    _tell_replaced(chosen)
    if args.dry_run:
        print("".join(f"{line}\n" for line in running.command_lines(chosen)), end="")
        return 0
    trials.write(chosen)
    with board_lib.Board(chosen.runs(), title=chosen.study.title) as board:
        runner = running.Runner(chosen, board, jobs=args.jobs, threads=threads)
        stopped = _until_done(runner, board)
    if stopped is not None:
        print("mvjax sweep: stopped; the same command continues", file=sys.stderr)
        return 128 + stopped
    return 0 if board.count(board_lib.FINISHED) == len(chosen.runs()) else 1


def _asking(chosen, *, dry: bool) -> dict:
    """How each benchmark of the study is asked; checks that it can be, before anything is trained."""
    from mvjax.eval import earlier, runner
    from mvjax.sweep import trials

    found = {}
    for asked in chosen.study.benchmarks:
        benchmark = evaluate.find(asked.benchmark, option="study(): benchmark")(chosen.data)
        modes = asked.prompts or benchmark.modes
        runner.check_modes(benchmark, modes)
        try:
            samples = evaluate.draw(benchmark, asked.limit, evaluate.SEED)
        except FileNotFoundError as error:
            if not dry:
                raise
            print(
                f"{asked.benchmark}: not checked, its data are not here: {error}", file=sys.stderr
            )
            continue
        runner.check(benchmark, samples, modes)
        facts = {"benchmark": benchmark.name, "seed": evaluate.SEED}
        facts |= dataclasses.asdict(benchmark.protocol)

        def replaces(
            folder: Path,
            step: int,
            *,
            name=benchmark.name,
            facts=facts,
            n=len(samples),
            modes=modes,
        ) -> list[str]:
            place = earlier.Place(folder / run_folder.EVAL, name)
            return place.lost(facts | {"step": step}, n, modes)

        found[asked.benchmark] = trials.Asking(modes, replaces)
    return found


def _tell_replaced(chosen) -> None:
    """Says which evaluations are not what the study asks for: they are asked again."""
    for run in chosen.runs():
        for asked in chosen.study.benchmarks:
            if facts := chosen.replaces(run, asked):
                listed = messages.names(facts, between="; ")
                told = f"{run}: {asked.benchmark} was asked otherwise ({listed}) and is asked again"
                print(told, file=sys.stderr)


def _until_done(runner, board) -> int | None:
    """Shows the board until the runner is done; returns the number of a signal that stopped it."""
    caught: list[int] = []

    def stop(number, _) -> None:
        if not caught:
            caught.append(number)
            runner.stop()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    earlier = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if earlier[number] is not signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    try:
        runner.start()
        while not runner.join(_REFRESH):
            board.refresh()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    return caught[0] if caught else None
