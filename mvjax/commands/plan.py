"""`mvjax plan`: memory, FLOPs and time of a training step on TPUs or GPUs that need not be here."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvjax import run_folder
from mvjax.commands import arguments

if TYPE_CHECKING:
    from mvjax.config import schema
    from mvjax.runtimes import interface
    from mvjax.train import chips

_TAKEN = "an experiment file, the folder of a run or, with --serve, that of an export"
_KV_CACHES: tuple[interface.KvCache | None, ...] = (None, "int8")  # that --serve compares


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "plan", plan, "does a step fit, and how fast could it be, on named TPUs or GPUs",
        "mvjax plan experiments/moshika_vis.py --topology v5e:8x8 --topology v5p:2x2x4")  # fmt: skip
    arguments.experiment(arg)
    arg("--topology", action="append", required=True, metavar="CHIP:SHAPE",
        help="a TPU slice (v4, v5e, v5p, v6e, tpu7x), such as v5e:8x8 or v5litepod-64: the step is"
        " compiled for it; or GPUs (h100, h200, b200, a100, l4, l40s), such as h100:8, or h100:2x8 in two"
        " nodes: measured if they are here, else compiled (extra gpu-plan), else counted; may be"
        " repeated")  # fmt: skip
    arg("--slices", type=int, default=1, metavar="N",
        help="so many TPU slices, or GPU nodes, of each topology: --topology v5e:8x8 --slices 2 is"
        " v5e:2x8x8; the data axis goes from one to the next")  # fmt: skip
    arg("--fit", action="store_true",
        help="find the fastest mesh, remat policy and gradient accumulation that fit")  # fmt: skip
    arg("--compile", type=int, default=2, metavar="N",
        help="with --fit: compile, or measure on GPUs that are here, the N best by estimate"
        " (%(default)s)")  # fmt: skip
    arg("--serve", action="store_true",
        help="instead of training: a frame of a conversation in the JAX runtime, compiled for one device,"
        " also of an export for PyTorch; bytes read against those needed, and how many conversations fit"
        " with KV caches as they are and in int8")  # fmt: skip
    arg("--count", action="store_true", help="analytic estimate only: compile and measure nothing")
    arg("--no-cache", action="store_true", help="ignore the cache of compiled steps")


def plan(args: argparse.Namespace) -> int:
    """Prints the plans; returns 1 if any of them does not fit."""
    if args.serve:
        return _serve(args)
    arguments.saved_config(args.experiment, _TAKEN)
    topologies = read_topologies(args.topology, measured=not args.count, slices=args.slices)
    how = {"fit": args.compile if args.fit else 0, "estimate_only": args.count}
    return show(arguments.load_experiment(args), topologies, cached=not args.no_cache, **how)


def _serve(args: argparse.Namespace) -> int:
    """Prints the plans of a frame; returns 1 if a device holds no conversation."""
    if args.fit or args.count or args.slices != 1:
        raise ValueError(
            "--serve: compiles one device's frame, without --fit, --count and --slices"
        )
    from mvjax.train import chips

    names = list(args.topology)
    for index, name in enumerate(names):  # one chip of a TPU, as l4:1 is one GPU
        chip, _, shape = name.partition(":")
        if shape == "1" and chip in chips.CHIPS:
            names[index] = f"{chip}:{'x'.join('1' * max(chips.CHIPS[chip].torus_axes, 1))}"
    topologies = read_topologies(names, measured=False)
    from mvjax.plan import compiled_step, frame_plan, frame_text

    run = _served(args)
    cache = None if args.no_cache else compiled_step.cache_folder()
    holds = []
    for topology in topologies:
        print(
            f"{topology.name}: compiling a frame (minutes, unless cached)",
            file=sys.stderr,
            flush=True,
        )
        plans = [
            frame_plan.plan(run, topology, cache=cache, stored=stored) for stored in _KV_CACHES
        ]
        print(f"{frame_text.full(plans)}\n")
        holds.append(max(one.holds for one in plans))
    return 0 if all(holds) else 1


def _served(args: argparse.Namespace) -> schema.Config:
    """Returns the config of an experiment, a run, or an export that the JAX runtime reads."""
    folder: Path = args.experiment
    if not folder.is_dir() or run_folder.is_run(folder):
        return arguments.load_experiment(args)
    from mvjax.runtimes import folder as folder_lib

    if not folder_lib.is_export(folder):
        arguments.saved_config(folder, _TAKEN)  # says what it expected
    if args.pick is not None:
        raise ValueError(
            f"--pick {args.pick}: {folder} is an export, not a sweep; leave --pick out"
        )
    from mvjax.config import schema, text
    from mvjax.runtimes.jax import exported

    nowhere = schema.FrozenFiles("", "", "", "")  # only shapes are wanted
    return text.override(schema.Config(nowhere, exported.read_config(folder)), args.set)


def read_topologies(
    names: Sequence[str], *, measured: bool, slices: int = 1
) -> list[chips.Topology]:
    """Parses topologies and, before jax is imported, selects its platforms; raises as `chips.topology`."""
    from mvjax.train import chips

    topologies = [chips.topology(name, slices) for name in names]
    gpus = any(one.chip.kind == "gpu" for one in topologies)
    _choose_platforms(gpus=gpus, measured=measured)
    return topologies


def show(
    run: schema.Config,
    topologies: Sequence[chips.Topology],
    *,
    fit: int = 0,
    estimate_only: bool = False,
    measured: bool = True,
    cached: bool = True,
) -> int:
    """Prints the plans of a run; returns 1 if any of them does not fit. `measured`: on GPUs that are here."""
    from mvjax.plan import compiled_step, search
    from mvjax.plan import text as plan_text

    best = []
    for topology in topologies:
        plans = search.plans(
            run,
            topology,
            fit=fit,
            estimate_only=estimate_only,
            measured=measured,
            cache=compiled_step.cache_folder() if cached else None,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        if fit:
            print(f"{plan_text.table(plans)}\n")
        best.append(plans[0])
        print(f"{plan_text.full(plans[0])}\n\n{search.advice(plans[0])}\n")
    if len(best) > 1:
        print(plan_text.table(best))
    return 0 if all(one.fits for one in best) else 1


def _choose_platforms(*, gpus: bool, measured: bool) -> None:
    """Selects jax's platforms before it starts: never the TPUs, which are only described.

    CUDA is selected only where a driver shows a GPU; if jax cannot use it, the plan is made without.
    """
    from mvjax.train import chips

    here = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # dxg: Windows
    cuda = gpus and measured and here
    os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if cuda else "cpu")
    if gpus and not here:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when jax is imported
        from mvjax.plan import gpu_targets

        gpu_targets.prepare()
    if not cuda:
        return
    # the memory that the estimate allows, and none of it before it is needed
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(chips.USABLE["gpu"]))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    try:
        jax.devices()
    except RuntimeError as error:
        print(f"mvjax plan: {error}\ncontinuing without the GPU", file=sys.stderr)
        jax.config.update("jax_platforms", "cpu")
