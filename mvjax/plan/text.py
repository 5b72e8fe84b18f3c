"""Plans in words: one topology in full, several beside each other, and what to do about one that fails."""

from __future__ import annotations

from collections.abc import Sequence

from mvjax.plan import cost, estimate, measure

_COLUMNS = (
    "topology", "mesh, remat", "GB of", "fits", "PFLOP", "again", "ms: compute", "HBM", "ICI",
    "step", "limit", "frames/s", "MFU", "unhidden", "hours",
)  # fmt: skip
_MEASURED = ("measured: ms", "frames/s", "MFU", "GB")


def full(one: cost.Plan) -> str:
    """Returns everything about one plan."""
    lines = [
        f"{one.topology.name}: {_devices(one)}, {mesh_words(one)}",
        "",
        "memory of a device, GB",
    ]
    lines += [f"  {name:<18} {value / 1e9:8.3f}" for name, value in one.memory.items()]
    lines += [f"  {'total':<18} {one.needed / 1e9:8.3f} of {one.room / 1e9:.1f}: {_verdict(one)}"]
    lines += ["", "operations of a step, all devices, PFLOP"]
    for name, part in one.flops.parts.items():
        lines.append(
            f"  {name:<18} {part.needed / 1e15:8.3f} needed"
            + (f" + {part.remat / 1e15:.3f} again" if part.remat else "")
        )
    lines += [
        f"  {'frozen-aware':<18} {one.flops.model_flops / 1e15:8.3f}",
        f"  {'plain (6N)':<18} {one.flops.all_trained / 1e15:8.3f}",
        f"  {'recomputed':<18} {one.flops.remat / 1e15:8.3f}",
    ]
    if one.read:
        counted = one.flops.model_flops + one.flops.remat
        lines.append(
            f"  {'compiled':<18} {one.executed / 1e15:8.3f}, {one.executed / counted:.3f} of the "
            f"count; recomputed {one.recomputed / 1e15:.3f}"
        )
    if one.times:
        lines += ["", *_time_lines(one)]
    if one.measured:
        lines += ["", *_measured_lines(one, one.measured)]
    return "\n".join(lines)


def table(plans: Sequence[cost.Plan]) -> str:
    """Returns one line a plan; where any was measured, that stands in columns of its own."""
    rows = [_COLUMNS, *(_row(one) for one in plans)]
    if any(one.measured for one in plans):
        more = [_MEASURED, *(_measured_row(one) for one in plans)]
        rows = [(*row, *cells) for row, cells in zip(rows, more)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def remedy(one: cost.Plan) -> str:
    """Returns what would make a plan fit that does not: the best leaner setting, by counting."""
    ranked = estimate.ranked(one.run, one.topology)
    leaner = [other for other in ranked if other.fits and other.needed < one.needed]
    if leaner:
        best = leaner[0]
        return (
            f"what would make it fit, by counting ({best.needed / 1e9:.1f} GB of "
            f"{best.room / 1e9:.1f}): {estimate.settings(best.run)}\n"
            "--fit tries the best few and picks one"
        )
    least = min(ranked, key=lambda other: other.needed)
    return (
        f"nothing makes this batch fit {one.topology.name}: the leanest setting "
        f"({estimate.settings(least.run)}) needs {least.needed / 1e9:.1f} GB of "
        f"{least.room / 1e9:.1f}; take more chips, fewer rows, or train.frozen_dtype=int8"
    )


def mesh_words(one: cost.Plan) -> str:
    """Returns mesh, policy and accumulation."""
    m, train = one.run.mesh, one.run.train
    words = f"data={m.data} fsdp={m.fsdp} tensor={m.tensor} {train.remat}"
    return words + (f" x{train.grad_accum_steps}" if train.grad_accum_steps > 1 else "")


def _time_lines(one: cost.Plan) -> list[str]:
    assert one.times is not None
    received = ", ".join(f"{name} {b / 1e9:.2f}" for name, b in sorted(one.collectives.items()))
    peak, t = one.topology.chip, one.times
    lines = [
        "time of a step, each as if alone, ms",
        f"  {'products':<18} {t.compute * 1e3:8.1f}  {one.executed / one.topology.devices / 1e12:.1f}"
        f" TFLOP a device at {peak.peak_flops / 1e12:.0f} a second",
        f"  {'main memory':<18} {t.hbm * 1e3:8.1f}  {one.traffic / 1e9:.1f} GB a device at"
        f" {peak.hbm_bandwidth / 1e9:.0f} a second",
        f"  {'collectives':<18} {t.ici * 1e3:8.1f}  GB into a device: {received or 'none'}",
        f"  {'step (the longest)':<18} {t.step * 1e3:8.1f}  limit: {t.limit}",
        f"  {'nothing hidden':<18} {t.serial * 1e3:8.1f}",
        "",
        f"{one.frames_per_second:,.0f} frames/s; model FLOP utilization, frozen-aware, "
        f"{one.utilization:.1%} (nothing hidden: {one.serial_utilization:.1%}); "
        f"{one.hours:.1f} hours for {one.run.train.steps:,} steps",
    ]
    how = "counted, not compiled" + (f"; not measured: {one.note}" if one.note else "")
    if one.compiled:
        how = f"compiled in {one.seconds:.0f} s"
        how += (
            "" if one.read else "; jaxlib cannot read this program: memory compiled, rest counted"
        )
    return [*lines, f"rates: {peak.source}; {how}"]


def _measured_lines(one: cost.Plan, got: measure.Measured) -> list[str]:
    lines = [f"measured on {got.devices} x {got.kind}"]
    if not got.fits:
        need = f": {got.memory / 1e9:.3f} GB by the {got.memory_from}" if got.memory else ""
        return [*lines, f"  out of memory{need}; {got.refused}"]
    said = {
        "device": "held by the fullest device at most, the making of the state included",
        "compiler": "as the compiler lays the step out",
    }[got.memory_from]
    again = f" ({got.seconds / one.times.step:.2f} of the counted)" if one.times else ""
    return [
        *lines,
        f"  {'step':<18} {got.seconds * 1e3:8.1f} ms, the median of {got.steps}{again}; "
        f"compiled in {got.compile_seconds:.0f} s",
        f"  {'memory':<18} {got.memory / 1e9:8.3f} GB {said}",
        f"  {one.measured_frames_per_second:,.0f} frames/s; model FLOP utilization, frozen-aware, "
        f"{one.measured_utilization:.1%}; {one.run.train.steps * got.seconds / 3600:.1f} hours for "
        f"{one.run.train.steps:,} steps",
    ]


def _measured_row(one: cost.Plan) -> tuple[str, ...]:
    got = one.measured
    if got is None:
        return ("",) * len(_MEASURED)
    if not got.fits:
        return ("out of memory", "", "", f"{got.memory / 1e9:.1f}")
    return (
        f"{got.seconds * 1e3:.0f}",
        f"{one.measured_frames_per_second:,.0f}",
        f"{one.measured_utilization:.1%}",
        f"{got.memory / 1e9:.1f}",
    )


def _row(one: cost.Plan) -> tuple[str, ...]:
    start = (
        one.topology.name,
        mesh_words(one),
        f"{one.needed / 1e9:.1f} of {one.room / 1e9:.1f}",
        "yes" if one.fits else "no",
        f"{one.flops.model_flops / 1e15:.3f}",
        f"{(one.recomputed if one.times else one.flops.remat) / 1e15:.3f}",
    )
    t = one.times
    if t is None or not one.fits:
        return (*start, *[""] * (len(_COLUMNS) - len(start)))
    seconds = [f"{s * 1e3:.0f}" for s in (t.compute, t.hbm, t.ici, t.step)]
    return (
        *start,
        *seconds,
        t.limit,
        f"{one.frames_per_second:,.0f}",
        f"{one.utilization:.1%}",
        f"{one.serial_utilization:.1%}",
        f"{one.hours:.1f}",
    )


def _verdict(one: cost.Plan) -> str:
    return "fits" if one.fits else "does not fit"


def _devices(one: cost.Plan) -> str:
    chips_ = one.topology.devices // one.topology.chip.devices_per_chip
    devices = "" if chips_ == one.topology.devices else f" ({one.topology.devices} devices)"
    return f"{chips_} chips{devices}"
