"""Prints the plan of a frame: memory, traffic against what is needed, and how many conversations fit."""

from __future__ import annotations

import math

from mvjax import types
from mvjax.plan import frame_plan, gpu_targets

CONVERSATIONS = (1_000, 1_000_000)  # at once, for which devices are counted


def full(one: frame_plan.FramePlan) -> str:
    """Returns everything about a plan."""
    c, chip = one.run.model, one.topology.chip
    frames = [one.one] if one.many is None or one.many is one.one else [one.one, one.many]
    heads = [f"{f.rows} conversation{'s' if f.rows > 1 else ''}" for f in frames]
    lines = [
        f"{one.topology.name}: a frame of the JAX runtime, {c.dtype}, full context of"
        f" {c.backbone.window} frames, image of {c.siglip.tokens} tokens seen",
        "",
        _row("memory, GB", heads),
        *(
            _row(f"  {name}", [f"{f.memory.get(name, 0.0) / 1e9:.3f}" for f in frames])
            for name in one.one.memory
        ),
        _row("  total", [f"{f.peak_hbm / 1e9:.3f}" for f in frames]) + _limit(one),
    ]
    if not one.one.fits:
        words = "not one conversation fits: take a device with more memory, or --set train.frozen_dtype=int8"
        return "\n".join([*lines, "", words])
    needed = [
        (name, [getattr(f.needed, field) for f in frames])
        for name, field in (
            ("weights", "weights"), ("weights of layers, again", "again"), ("KV caches", "caches"),
            ("images, in every layer", "images"), ("needed", "total"),
        )
    ]  # fmt: skip
    lines += [
        "",
        _row("read a frame, GB", heads),
        *(_row(f"  {name}", [f"{size / 1e9:.2f}" for size in sizes]) for name, sizes in needed),
        _row("  compiled program", [f"{f.hbm_bytes / 1e9:.2f}" for f in frames]),
        _row("  times the needed", [f"{f.hbm_bytes / f.needed.total:.2f}" for f in frames]),
        "",
        _row(f"ms a frame, of {types.FRAME_SECONDS * 1e3:.0f}", heads),
        _row("  HBM", [f"{1e3 * f.hbm_bytes / chip.hbm_bandwidth:.1f}" for f in frames])
        + f"  at {chip.hbm_bandwidth / 1e9:.0f} GB/s",
        _row("  matmuls", [f"{1e3 * f.flops / chip.peak_flops:.1f}" for f in frames])
        + f"  at {chip.peak_flops / 1e12:.0f} TFLOP/s",
        "",
        f"conversations that a device holds: {one.by_memory:,} by memory, {one.by_deadline:,} by the deadline"
        f" of {types.FRAME_SECONDS * 1e3:.0f} ms at the bandwidth: {one.holds:,}",
    ]
    if one.holds:
        counts = (f"{n:,}: {math.ceil(n / one.holds):,}" for n in CONVERSATIONS)
        lines.append(f"devices for so many conversations at once: {'; '.join(counts)}")
    lines += ["", f"peak rates: {chip.source}; a bound from the compiled program, nothing was run"]
    if chip.kind == "gpu":
        lines.append(gpu_targets.UNKNOWN)
    return "\n".join(lines)


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<27}" + "".join(f" {cell:>17}" for cell in cells)


def _limit(one: frame_plan.FramePlan) -> str:
    return f"  of {one.topology.usable_hbm / 1e9:.1f}"
