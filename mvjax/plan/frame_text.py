"""Prints the plan of a frame: memory, traffic against what is needed, and how many conversations fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mvjax import types
from mvjax.plan import frame_plan, gpu_targets
from mvjax.train import chips

CONVERSATIONS = (1_000, 1_000_000)  # at once, for which devices are counted


def full(plans: Sequence[frame_plan.FramePlan]) -> str:
    """Returns everything about the plans of one topology, which differ in how KV caches are stored."""
    topology, c = plans[0].topology, plans[0].run.model
    chip, tried = topology.chip, [frame for one in plans for frame in _frames(one)]
    heads = [f"{frame.rows}, {one.kv_cache}" for one in plans for frame in _frames(one)]
    lines = [
        f"{topology.name}: a frame of the JAX runtime, {c.dtype}, full context of"
        f" {c.backbone.window} frames, image of {c.siglip.tokens} tokens seen",
        "",
        _row("conversations, KV caches in", heads),
        "memory, GB",
        *(
            _row(f"  {name}", [f"{f.memory.get(name, 0.0) / 1e9:.3f}" for f in tried])
            for name in plans[0].one.memory
        ),
        _row("  total", [f"{f.peak_hbm / 1e9:.3f}" for f in tried])
        + f"  of {topology.usable_hbm / 1e9:.1f}",
    ]
    fitting = [f for f in tried if f.fits]
    if not fitting:
        words = "not one conversation fits: take a device with more memory, or --set train.frozen_dtype=int8"
        return "\n".join([*lines, "", words])
    if len(fitting) < len(tried):
        heads = [head for head, f in zip(heads, tried) if f.fits]
        lines += ["", _row("of those that fit", heads)]
    lines += [*_time(fitting, chip), "", *_holds(plans)]
    lines += ["", f"peak rates: {chip.source}; a bound from the compiled program, nothing was run"]
    if chip.kind == "gpu":
        lines.append(gpu_targets.UNKNOWN)
    return "\n".join(lines)


def _frames(one: frame_plan.FramePlan) -> list[frame_plan.Frame]:
    return [one.one] if one.many is None or one.many is one.one else [one.one, one.many]


def _time(frames: Sequence[frame_plan.Frame], chip: chips.Chip) -> list[str]:
    needed = [
        (name, [getattr(f.needed, field) for f in frames])
        for name, field in (
            ("weights", "weights"), ("weights of layers, again", "again"), ("KV caches", "caches"),
            ("images, in every layer", "images"), ("needed", "total"),
        )
    ]  # fmt: skip
    return [
        "read a frame, GB",
        *(_row(f"  {name}", [f"{size / 1e9:.2f}" for size in sizes]) for name, sizes in needed),
        _row("  compiled program", [f"{f.hbm_bytes / 1e9:.2f}" for f in frames]),
        _row("  times the needed", [f"{f.hbm_bytes / f.needed.total:.2f}" for f in frames]),
        f"ms a frame, of {types.FRAME_SECONDS * 1e3:.0f}",
        _row("  HBM", [f"{1e3 * f.hbm_bytes / chip.hbm_bandwidth:.1f}" for f in frames])
        + f"  at {chip.hbm_bandwidth / 1e9:.0f} GB/s",
        _row("  matmuls", [f"{1e3 * f.flops / chip.peak_flops:.1f}" for f in frames])
        + f"  at {chip.peak_flops / 1e12:.0f} TFLOP/s",
    ]


def _holds(plans: Sequence[frame_plan.FramePlan]) -> list[str]:
    """The table of conversations that a device holds: the fewer of what two limits allow."""
    lines = [
        _row("KV caches in", [one.kv_cache for one in plans]),
        _row("  GB a conversation", [f"{one.one.memory['KV caches'] / 1e9:.3g}" for one in plans]),
        _row("  fit by memory", [f"{one.by_memory:,}" for one in plans]),
        _row(
            f"  by the {types.FRAME_SECONDS * 1e3:.0f} ms deadline",
            [f"{one.by_deadline:,}" for one in plans],
        )
        + "  at the bandwidth",
        _row("  a device holds", [f"{one.holds:,}" for one in plans]),
    ]
    for n in CONVERSATIONS:
        devices = ["-" if not one.holds else f"{math.ceil(n / one.holds):,}" for one in plans]
        lines.append(_row(f"  devices for {n:,}", devices))
    return lines


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<27}" + "".join(f" {cell:>13}" for cell in cells)
