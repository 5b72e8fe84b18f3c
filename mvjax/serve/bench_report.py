"""What a benchmark says: one table, JSON that replaces none, a plot of latency over the conversation."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import itertools
import json
from pathlib import Path
from typing import Any

from rich import box
from rich import table as rich_table

from mvjax import types
from mvjax.serve import bench, cache_effect, timing

_PLOT_NEEDS = "the plot needs matplotlib: pip install 'mvjax[train]'"


@dataclasses.dataclass(frozen=True)
class Result:
    """One runtime.

    Attributes:
      runtime: "torch", "mlx" or "jax".
      dtype: that it computes in, and how weights and KV cache are quantized.
      load: seconds.
      measured: latencies.
      codec: latency of encoding and decoding; None without a codec.
      bandwidth: bytes/s of the memory that the weights are in, measured on the spot.
      needed: bytes of each case's frame; None where they are not known.
      device_memory: peak bytes on a GPU; None on a CPU.
      cache_effect: of a KV cache of codes; None without.
    """

    runtime: str
    dtype: str
    device: str
    load: float
    measured: bench.Measured
    codec: timing.Latency | None
    bandwidth: float
    needed: list[float | None]
    device_memory: int | None
    cache_effect: cache_effect.Effect | None = None


def share(result: Result, index: int) -> float | None:
    """Returns the limit of a case, bytes over bandwidth, as a share of its p50."""
    needed = result.needed[index]
    if needed is None:
        return None
    return needed / result.bandwidth / (result.measured.cases[index].latency.p50 / 1e3)


def table(results: list[Result], name: str) -> rich_table.Table:
    """Returns the table, a row a case."""
    found = rich_table.Table(
        title=f"{name}: milliseconds a frame of 80", box=box.SIMPLE_HEAD, padding=0
    )
    found.add_column("slots, time", no_wrap=True)
    for heading in ("p50", "p95", "p99", "max", "at", "missed", "behind", "limit"):
        found.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        found.add_row(f"[bold]{result.runtime}[/]")
        for i, case in enumerate(result.measured.cases):
            told, limit = case.latency, share(result, i)
            found.add_row(
                _words(case),
                *map(_number, (told.p50, told.p95, told.p99, told.maximum)),
                str(told.worst_frame),
                f"{told.missed}/{told.frames}",
                str(told.deficit),
                "?" if limit is None else f"{limit:.0%}",
                end_section=i + 1 == len(result.measured.cases),
            )
    return found


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _words(case: bench.Case) -> str:
    seen = "" if case.image else " blind"
    return f"{case.slots}, {case.position * types.FRAME_SECONDS:.0f} s{seen}"


def lines(result: Result) -> list[str]:
    """Returns what the table has no column for: cold, warm, parts, what the picture adds, memory."""
    measured, told = result.measured, []
    cold = [f"{first * 1e3:.0f} ms with {n} slots" for n, first in measured.first.items()]
    rest = sum(measured.warm_up.values())
    told.append(
        f"cold: loaded in {result.load:.1f} s, first frame {', '.join(cold)}, the rest of the"
        f" warm-up {rest:.1f} s; the table is warm"
    )
    told += [
        f"{result.dtype}: {_parts(result)}",
        *(
            f"the picture adds {added:.1f} ms at {position * types.FRAME_SECONDS:.0f} s"
            for position, added in picture(measured).items()
        ),
    ]
    if result.cache_effect is not None:
        told.append(
            f"its KV cache beside one in {result.dtype.partition(',')[0]}, {result.cache_effect.words}"
        )
    memory = [] if measured.memory is None else [f"{measured.memory / 1e9:.2f} GB of the process"]
    if result.device_memory is not None:
        memory.append(f"{result.device_memory / 1e9:.2f} GB at most on the device")
    told.append(f"memory: {', '.join(memory) or 'the system does not tell'}")
    told.append(f"{result.device} read {result.bandwidth / 1e9:.1f} GB/s")
    return [f"{result.runtime}: {line}" for line in told]


def picture(measured: bench.Measured) -> dict[int, float]:
    """Returns {position: milliseconds that seeing an image adds to p50}, of one slot."""
    p50 = {(c.position, c.image): c.latency.p50 for c in measured.cases if c.slots == 1}
    return {
        position: p50[position, True] - p50[position, False]
        for position, image in p50
        if image and (position, False) in p50
    }


def _parts(result: Result) -> str:
    measured = result.measured
    whole = next((c.latency.p50 for c in measured.cases if c.slots == 1 and c.image), None)
    codec = "codec not measured (no weights)"
    if result.codec is not None:
        codec = f"codec {result.codec.p50:.1f} ms"
    if whole is None or measured.depth is None:
        return codec
    depth = measured.depth * whole
    return f"{codec}, backbone {whole - depth:.1f} ms, depth transformer {depth:.1f} ms"


def save(content: dict[str, Any], results: list[Result], folder: Path, name: str) -> list[str]:
    """Writes JSON and plot into a folder, under a name with the time; returns what is there, or missing."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = _stamp()
    content = {"when": stamp, **content}
    content["results"] = [
        dataclasses.asdict(result)
        | {"measured": _plain(result.measured)}
        | {"share_of_limit": [share(result, i) for i in range(len(result.needed))]}
        for result in results
    ]
    parts = {".json": json.dumps(content, indent=1).encode()}
    with contextlib.suppress(ModuleNotFoundError):
        parts[".svg"] = plot(results)
    written = [str(path) for path in _write_new(folder, f"{name}-{stamp}", parts)]
    return written if ".svg" in parts else [*written, _PLOT_NEEDS]


def _stamp() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")


def _write_new(folder: Path, stem: str, parts: dict[str, bytes]) -> list[Path]:
    """Writes {suffix: content} under the first number at which none is there; also of others at work."""
    for number in itertools.count(1):
        made: list[Path] = []
        try:
            for suffix, content in parts.items():
                path = folder / f"{stem}{f'-{number}' if number > 1 else ''}{suffix}"
                with path.open("xb") as file:
                    made.append(path)
                    file.write(content)
            return made
        except FileExistsError:
            for path in made:
                path.unlink()
    raise AssertionError("numbers do not end")


def _plain(measured: bench.Measured) -> dict[str, Any]:
    return measured._asdict() | {"cases": [dataclasses.asdict(case) for case in measured.cases]}


def plot(results: list[Result]) -> bytes:
    """Returns an SVG: every frame's latency, a row of axes a runtime, from an empty and with a full cache."""
    import matplotlib
    from matplotlib import figure as figures

    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "mvjax"}):
        figure = figures.Figure(figsize=(9.6, 2.6 * len(results)), layout="constrained")
        grid = figure.subplots(len(results), squeeze=False, sharex=True)[:, 0]
        for axes, result in zip(grid, results):
            for case in result.measured.cases:
                where = f"from {case.position * types.FRAME_SECONDS:.0f} s"
                seen = "image" if case.image else "no image"
                label = f"{where}, {seen}" + (f", {case.slots} slots" if case.slots > 1 else "")
                axes.plot([s * 1e3 for s in case.seconds], linewidth=0.9, label=label)
            axes.axhline(types.FRAME_SECONDS * 1e3, color="black", linewidth=0.8, linestyle=":")
            axes.set(ylabel="ms", ylim=(0, None), title=f"{result.runtime} {result.dtype}")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper right")
        grid[-1].set_xlabel("frame of the conversation; dotted: 80 ms, real time")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        return drawn.getvalue()
