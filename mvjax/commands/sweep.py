"""`mvjax sweep`: trains and evaluates the trials of an experiment file with several seeds."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from mvjax.commands import arguments

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
    arg(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the sweep, new or to be continued",
    )
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
    threads = args.threads or max(1, (os.cpu_count() or 1) // max(1, args.jobs))
    for name, value in (("seeds", args.seeds), ("jobs", args.jobs), ("threads", threads)):
        if value < 1:
            raise ValueError(f"--{name}: expected at least 1, got {value}")
    from mvjax.sweep import board as board_lib
    from mvjax.sweep import outcome, running, trials

    how = {"picks": args.pick, "settings": args.set, "seeds": args.seeds, "data": args.data}
    chosen = trials.load(args.experiment, out=args.out, **how)
    outcome.check(chosen.runs())
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
