"""`mvjax bench`: how late each runtime's frames are, and how near to what memory allows."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvjax.commands import arguments, bench_models, speakers, spinner

if TYPE_CHECKING:
    from mvjax.serve import bench_report

SIZES = ("tiny", "mid", "7b")
_READ = 2**31  # bytes, to measure a GPU's memory: half a millisecond of the fastest


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "bench", bench, "measure the latency of each 80 ms frame",
        "mvjax bench runs/quickstart/run --slots 1,4")  # fmt: skip
    arg("folder", nargs="?", type=arguments.served, metavar="DIR",
        help="written by `mvjax export` (PyTorch or MLX), or a run folder, RUN[@STEP] (JAX)")  # fmt: skip
    arg("--random", choices=SIZES, metavar="SIZE",
        help=f"random weights in place of DIR: {', '.join(SIZES)} (347 M, 8.3 B)")  # fmt: skip
    arg("--runtime", nargs="+", choices=bench_models.RUNTIMES,
        help="which, with --random; default: all that are installed")  # fmt: skip
    arg("--dtype", choices=("float32", "bfloat16"), help="compute in this; default: the runtime's")
    arg("--quantize", choices=("int8", "int4"), help="weights, in PyTorch; and int8 in JAX")
    speakers.kv_cache(arg, ": prints its effect on the logits, too")
    arg("--slots", type=_numbers, default=(1,), metavar="N,N",
        help="conversations in a batch, such as 1,2,4,8 (1)")  # fmt: skip
    arg("--frames", type=_frames, default=200, metavar="N",
        help="timed in each case: the empty cache, the full one, without an image (%(default)s)")  # fmt: skip
    arg("--out", type=Path, default=Path("runs/bench"), metavar="FOLDER",
        help="for JSON and plot, which replace none (%(default)s)")  # fmt: skip


def bench(args: argparse.Namespace) -> int:
    """Measures, prints the table, and writes JSON and plot."""
    if (args.folder is None) == (args.random is None):
        raise ValueError("expected DIR or --random SIZE, and not both")
    arguments.check_writable(args.out / "bench.json")
    import rich

    from mvjax.serve import bench as bench_lib
    from mvjax.serve import bench_report, machine

    settings = bench_lib.Settings(frames=args.frames, slots=args.slots)
    name, results = args.random or args.folder.folder.resolve().name, []
    about = machine.about()
    print(f"{about['cpu']}, {about['threads']} threads; {'; '.join(about['gpus']) or 'no GPU'}")
    begun = time.perf_counter()
    for opened in bench_models.models(args):
        load = time.perf_counter() - begun
        with spinner.shown(f"measuring {opened.runtime}, {opened.dtype}"):
            results.append(result(opened, settings, load))
        del opened
        begun = time.perf_counter()
    rich.print(bench_report.table(results, name))
    for told in (line for one in results for line in bench_report.lines(one)):
        print(told)
    content = {"machine": about, "command": sys.argv[1:], "model": name}
    for written in bench_report.save(content, results, args.out, f"bench-{name}"):
        print(written)
    return 0


def result(opened: bench_models.Opened, settings: Any, load: float) -> bench_report.Result:
    """Measures one model."""
    from mvjax.runtimes import loading
    from mvjax.serve import bench as bench_lib
    from mvjax.serve import bench_report, machine

    model, memory = opened.model, _memory(opened.runtime)
    device = memory.device()
    measured = bench_lib.measure(model, settings, shallow=opened.shallow)
    if device is None:
        bandwidth = machine.memory_bandwidth()
    else:
        bandwidth = machine.bandwidth(memory.reader(_READ), _READ)
    codec, effect = None, None
    if opened.kv_cache:
        from mvjax.serve import cache_effect

        effect = cache_effect.measure(model, context=opened.context)
    if opened.folder is not None:
        voice = loading.open_speaker(opened.folder, model=model).voice()
        codec = bench_lib.voice_latency(voice, bench_lib.any_frame(model), settings.frames)
    return bench_report.Result(
        runtime=opened.runtime,
        dtype=opened.dtype,
        device=device or f"{machine.about()['threads']} threads",
        load=load,
        measured=measured,
        codec=codec,
        bandwidth=bandwidth,
        needed=[opened.needed(case, settings.frames) for case in measured.cases],
        device_memory=None if device is None else memory.peak(),
        cache_effect=effect,
    )


def _memory(runtime: str) -> Any:
    if runtime == "torch":
        from mvjax.runtimes.torch import memory
    elif runtime == "mlx":
        from mvjax.runtimes.mlx import memory
    else:
        from mvjax.runtimes.jax import memory
    return memory


def _numbers(text: str) -> tuple[int, ...]:
    found = tuple(
        int(word) for word in text.split(",") if word.isdecimal() and 1 <= int(word) <= 1024
    )
    if len(found) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,2,4,8, got {text!r}")
    return found


def _frames(text: str) -> int:
    if not (text.isdecimal() and 10 <= int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"expected a number from 10 to 100000, got {text!r}")
    return int(text)
