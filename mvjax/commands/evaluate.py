"""`mvjax eval`: asks a trained run the questions of a benchmark."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import re
import sys
from pathlib import Path

from mvjax import messages
from mvjax.commands import arguments, spinner
from mvjax.stores import places


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
_NAME = re.compile(r"[\w+-]+(\.[\w+-]+)*")
SEED = 1  # of the questions
PROMPTS = ("text", "audio", "blind", "shuffled")  # `benchmarks.MODES`, whose import takes numpy


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "eval", evaluate, "ask a trained run the questions of a benchmark",
        "mvjax eval runs/digits --benchmark digits --prompt text --prompt audio")  # fmt: skip
    arguments.trained_run(arg, type=arguments.stored_run_step)
    arg("--benchmark", default="digits", metavar="NAME",
        help="one that --benchmarks lists, or a file that defines one (%(default)s)")  # fmt: skip
    arg("--benchmarks", action=arguments.Listing, const=_listed,
        help="list the benchmarks: metric, prompts, and the files that each wants")  # fmt: skip
    arg("--data", type=Path, metavar="ROOT",
        help="folder that local copies of public data lie below")  # fmt: skip
    arg("--prompt", action="append", choices=PROMPTS,
        help="written questions, spoken ones, written without the image, or written with the image of"
        " another question; may be repeated (all that the benchmark has)")  # fmt: skip
    arg("--limit", type=int, metavar="N", help="ask N questions, for a first look (all)")
    arg(
        "--seed",
        type=arguments.seed,
        default=SEED,
        help="random seed of the questions (%(default)s)",
    )
    arg("--batch-size", type=int, default=64, metavar="N",
        help="conversations at once (%(default)s)")  # fmt: skip
    arg("--fsdp", type=int, metavar="N", help="devices that share the parameters (as in training)")
    arg("--tensor", type=int, metavar="N", help="devices that share each matmul (as in training)")
    arg("--as", dest="name", metavar="NAME",
        help="name of the files in RUN/eval, to keep it beside another one (the benchmark's)")  # fmt: skip
    arg("--again", action="store_true",
        help="replace what is there under that name, result and answers")  # fmt: skip
    arg("--lead-in", type=float, metavar="SECONDS",
        help="silence before the first spoken question; the model may greet (the benchmark's)")  # fmt: skip
    arg("--tail", type=float, metavar="SECONDS",
        help="silence after a spoken question, for its answer (the benchmark's)")  # fmt: skip
    arg("--greeting", choices=("free", "suppressed"),
        help="what the model may say in the lead-in: anything, or nothing (the benchmark's)")  # fmt: skip
    arg("--max-tokens", type=int, metavar="N",
        help="the longest written answer (the benchmark's)")  # fmt: skip
    arg("--template", metavar="TEXT",
        help="of written questions, with {prompt} in it (the benchmark's)")  # fmt: skip


def evaluate(args: argparse.Namespace) -> int:
    """Prints the table of scores and writes it to RUN/eval/NAME.json, or NAME@STEP.json.

    The answers are in NAME.samples.jsonl beside it, which the same command continues.
    """
    make = find(args.benchmark, option="--benchmark")
    _check(args)
    from mvjax.eval import model as eval_model
    from mvjax.eval import results, runner
    from mvjax.train import distributed, load, run_store

    here = run_store.opened(args.trained_run.folder)
    with distributed.session(), here, contextlib.ExitStack() as stack:
        benchmark, modes = make(args.data), args.prompt or make.modes
        runner.check_modes(benchmark, modes)
        samples = draw(benchmark, args.limit, args.seed)
        runner.check(benchmark, samples, modes)
        place, protocol = _place(args, make.name), _protocol(benchmark.protocol, args)
        if not args.again:  # before a large model is loaded
            facts = {"benchmark": make.name, "seed": args.seed, **dataclasses.asdict(protocol)}
            distributed.from_first(lambda: place.check(facts, len(samples), modes))
        trained = load.trained(*args.trained_run, mesh=functools.partial(_mesh, args))
        model = eval_model.load(trained.config, trained.params, trained.mesh)
        asked = results.Asked(
            benchmark=benchmark,
            config=trained.config,
            step=trained.step,
            checkpoint=trained.identity,
            protocol=protocol,
            seed=args.seed,
            limit=args.limit,
            batch_size=args.batch_size,
        )
        logs = []

        def enter() -> list[str]:
            opened = place.opened(asked, len(samples), modes, again=args.again)
            log, admitted = stack.enter_context(opened)
            _say_what_is_there(log)
            logs.append(log)
            return admitted

        modes = distributed.from_first(enter)
        first, log = distributed.is_first(), next(iter(logs), None)
        say = stack.enter_context(spinner.shown(make.name)) if first else None
        evaluation = runner.evaluate(
            model,
            benchmark,
            samples,
            modes,
            protocol=asked.protocol,
            batch_size=args.batch_size,
            log=log,
            say=say or runner.quiet,
        )
        if first:
            results.write(place.result, evaluation, asked)
            print(results.text(evaluation, asked))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses options that make no sense, before anything is read or changed."""
    for name in ("limit", "batch_size", "fsdp", "tensor", "max_tokens", "lead_in", "tail"):
        value, low = getattr(args, name), 0 if name in ("lead_in", "tail") else 1
        if value is not None and not low <= value < math.inf:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: expected a number of at least {low}, got {value:g}")
    if args.template is not None:
        try:
            good = args.template.format(prompt="{prompt}") != args.template.format(prompt="")
        except (ValueError, LookupError, AttributeError):  # another field, or a brace alone
            good = False
        if not good:
            raise ValueError(
                "--template: expected a text with {prompt} in it and no other field (a brace is written"
                f" twice), got {args.template!r}"
            )
    if args.name is not None and not _NAME.fullmatch(args.name):
        raise ValueError(
            f"--as: expected a name of letters, digits, _ + -, and . within, got {args.name!r}"
        )


def _place(args: argparse.Namespace, name: str):
    """The files of the evaluation; a benchmark's name is theirs unless the options say another."""
    from mvjax import run_folder
    from mvjax.eval import earlier

    folder, step = args.trained_run
    name = args.name or name
    arguments.check_folder(folder / run_folder.EVAL)
    return earlier.Place(folder / run_folder.EVAL, name if step is None else f"{name}@{step}")


def _mesh(args: argparse.Namespace, run):
    """The run's mesh if there are as many devices here, else all of them hold rows; as the options say."""
    from mvjax.config import schema
    from mvjax.train import sharding

    if args.fsdp is None and args.tensor is None:
        with contextlib.suppress(ValueError):
            return sharding.make_mesh(run.mesh)
    sizes = schema.MeshConfig(data=-1, fsdp=args.fsdp or 1, tensor=args.tensor or 1)
    return sharding.make_mesh(sizes)


def _protocol(protocol, args: argparse.Namespace):
    """The benchmark's protocol with what the options change."""
    names = ("lead_in", "tail", "greeting", "max_tokens", "template")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(protocol, **given)


def _say_what_is_there(log) -> None:
    if log.dropped:
        print(f"{places.named(log.path)}: dropped {log.dropped}", file=sys.stderr)
    if log.lines:
        counted = messages.counted(len(log.lines), "answer")
        print(f"{places.named(log.path)}: goes on after {counted}", file=sys.stderr)


def find(name: str, *, option: str):
    """Returns the class of a benchmark; an unknown name is an error of the option."""
    if name in DIGITS:
        return DIGITS[name]()
    from mvjax.eval import discovery

    return discovery.find(name, option=option, others=DIGITS)


def draw(benchmark, limit: int | None, seed: int):
    """Returns a benchmark's samples; what fails in a file of the user's is an error of the file."""
    try:
        return benchmark.samples(limit, seed)
    except (ValueError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise ValueError(
            f"benchmark {benchmark.name}: samples() failed: {type(error).__name__}: {error}"
        ) from error


def _listed() -> str:
    """Each benchmark with its metric, its modes, and what it needs where, as its file says."""
    from mvjax.eval import discovery

    shown = []
    for name in sorted([*DIGITS, *discovery.names()]):
        made = find(name, option="--benchmarks")
        what, *lines = (sys.modules[made.__module__].__doc__ or "").splitlines()
        layout = [line.strip() for line in lines if line.strip().startswith("ROOT/")]
        shown.append(f"{name}: {made.metric}; prompts {', '.join(made.modes)}")
        shown += [f"    {line}" for line in (what, *layout)]
    return "\n".join(shown)
