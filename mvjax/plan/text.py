"""Prints plans: one in full, several as a table."""

from __future__ import annotations

from collections.abc import Sequence

from mvjax import messages
from mvjax.plan import gpu_targets, hlo_cost, measure, step_plan

_COLUMNS = (
    "topology", "mesh, remat, grad accum", "peak HBM, GB", "fits", "model PFLOP", "remat PFLOP",
    "ms: compute", "HBM", "collectives", "roofline", "expected", "bound by", "frames/s", "MFU",
    "MFU, no overlap", "hours",
)  # fmt: skip
_MEASURED = ("measured: ms", "frames/s", "MFU", "peak GB")


def full(one: step_plan.StepPlan) -> str:
    """Returns everything about one plan."""
    chips = one.topology.devices // one.topology.chip.devices_per_chip
    devices = "" if chips == one.topology.devices else f" ({one.topology.devices} devices)"
    if (slices := one.topology.slices) > 1:
        devices += f" in {slices} {'slices' if one.topology.chip.kind == 'tpu' else 'nodes'}"
    verdict = "fits" if one.fits else "does not fit"
    lines = [
        f"{one.topology.name}: {messages.counted(chips, 'chip')}{devices}, {_setting(one)}",
        "",
        "peak HBM per device, GB",
        *(f"  {name:<21} {value / 1e9:8.3f}" for name, value in one.memory.items()),
        f"  {'total':<21} {one.peak_hbm / 1e9:8.3f} of {one.hbm_limit / 1e9:.1f}: {verdict}",
        "",
        *_flops_lines(one),
    ]
    if one.times:
        lines += ["", *_time_lines(one, one.times)]
    if one.kernels:
        lines += ["", *_kernel_lines(one)]
    if one.measured:
        lines += ["", *_measured_lines(one, one.measured)]
    return "\n".join(lines)


def table(plans: Sequence[step_plan.StepPlan]) -> str:
    """Returns one line per plan; if any was measured, with further columns for that."""
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


def _setting(one: step_plan.StepPlan) -> str:
    """Returns mesh, remat policy and gradient accumulation in words."""
    m, train = one.run.mesh, one.run.train
    words = f"data={m.data} fsdp={m.fsdp} tensor={m.tensor} {train.remat}"
    return words + (f" x{train.grad_accum_steps}" if train.grad_accum_steps > 1 else "")


def _flops_lines(one: step_plan.StepPlan) -> list[str]:
    lines = ["matmul FLOPs per step, all devices, PFLOP"]
    for name, part in one.flops.parts.items():
        remat = f" + {part.remat / 1e15:.3f} remat" if part.remat else ""
        lines.append(f"  {name:<21} {part.needed / 1e15:8.3f}{remat}")
    lines += [
        f"  {'model FLOPs needed':<21} {one.flops.model_flops / 1e15:8.3f} (frozen kernels need no "
        "weight gradients)",
        f"  {'all trained (6N)':<21} {one.flops.all_trained / 1e15:8.3f}",
        f"  {'remat':<21} {one.flops.remat / 1e15:8.3f}",
    ]
    if one.from_hlo:
        ratio = one.executed_flops / (one.flops.model_flops + one.flops.remat)
        lines.append(
            f"  {'compiled program':<21} {one.executed_flops / 1e15:8.3f}, {ratio:.3f} of needed + "
            f"remat; remat {one.remat_flops / 1e15:.3f}"
        )
    return lines


def _kernel_lines(one: step_plan.StepPlan) -> list[str]:
    """Returns what the kernels of each kind do; of GPUs also what compiling cannot know."""
    lines = [f"{'kernels per device':<23} {'run':>8} {'TFLOP':>9} {'GB of HBM':>10}"]
    lines += [
        f"  {kind:<21} {k.times:8,.0f} {k.flops / 1e12:9.2f} {k.hbm_bytes / 1e9:10.2f}"
        for kind, k in one.kernels.items()
    ]
    if one.topology.chip.kind == "gpu" and one.compiled:
        lines += ["", gpu_targets.UNKNOWN]
    return lines


def _received(one: step_plan.StepPlan) -> str:
    """Returns GB that one device receives by each kind of collective, and what of it comes over a network."""
    kinds = dict(sorted(one.collective_bytes.items()))
    network = kinds.pop(hlo_cost.BETWEEN_SLICES, 0.0)
    parts = [f"{name} {size / 1e9:.2f}" for name, size in kinds.items()]
    text = f"over {one.topology.chip.link}: {', '.join(parts)}" if parts else "none"
    return f"{text}; over the network: {network / 1e9:.2f}" if network else text


def _time_lines(one: step_plan.StepPlan, t: step_plan.StepTimes) -> list[str]:
    chip, speed = one.topology.chip, one.speed(t.roofline)
    tflops = one.executed_flops / one.topology.devices / 1e12
    lines = [
        "time per step, ms",
        f"  {'compute':<21} {t.compute * 1e3:8.1f}  {tflops:.1f} TFLOP per device at "
        f"{chip.peak_flops / 1e12:.0f} TFLOP/s",
        f"  {'HBM':<21} {t.hbm * 1e3:8.1f}  {one.hbm_traffic / 1e9:.1f} GB per device at "
        f"{chip.hbm_bandwidth / 1e9:.0f} GB/s",
        f"  {'collectives':<21} {t.collectives * 1e3:8.1f}  GB received per device "
        f"{_received(one)}",
        f"  {'roofline':<21} {t.roofline * 1e3:8.1f}  the longest: bound by {t.bound}",
        f"  {'no overlap':<21} {t.no_overlap * 1e3:8.1f}  no compute/communication overlap",
        f"  {'expected':<21} {t.expected * 1e3:8.1f}  {_expectation(t)}: --fit ranks by it",
        "",
        f"{speed.frames_per_second:,.0f} frames/s; MFU {speed.mfu:.1%} "
        f"(no overlap: {one.speed(t.no_overlap).mfu:.1%}, expected: {one.speed(t.expected).mfu:.1%}); "
        f"{speed.hours:.1f} hours for {one.run.train.steps:,} steps",
    ]
    source = "counted, not compiled" + (f"; {one.note}" if one.note else "")
    if one.compiled:
        source = f"compiled in {one.compile_seconds:.0f} s"
        if not one.from_hlo:
            source += "; jaxlib cannot read this program: memory compiled, rest counted"
    return [*lines, f"peak rates: {chip.source}; {source}"]


def _expectation(t: step_plan.StepTimes) -> str:
    if t.kernels is None:
        return "four parts roofline, one no overlap"
    rates = f"matmuls at {gpu_targets.REACHED['Triton matmuls']:.0%}, attention at "
    rates += f"{gpu_targets.REACHED['attention kernels']:.0%} and memory at "
    return f"{rates}{gpu_targets.REACHED_OF_MEMORY:.0%} of peak, as measured on an H200"


def _measured_lines(one: step_plan.StepPlan, got: measure.Measured) -> list[str]:
    lines = [f"measured on {got.devices} x {got.device_kind}"]
    gb = f"{got.peak_memory / 1e9:.3f} GB"
    if not got.fits:
        need = f": {gb} by the {got.memory_source}" if got.peak_memory else ""
        return [*lines, f"  out of memory{need}; {got.error}"]
    source = {
        "device": "peak of the fullest device, making the state included",
        "compiler": "as the compiler lays the step out",
    }[got.memory_source]
    ratio = f" ({got.step_seconds / one.times.roofline:.2f} of the roofline)" if one.times else ""
    speed = one.speed(got.step_seconds)
    return [
        *lines,
        f"  {'step':<21} {got.step_seconds * 1e3:8.1f} ms, median of {got.steps}{ratio}; "
        f"compiled in {got.compile_seconds:.0f} s",
        f"  {'memory':<21} {gb:>11}, {source}",
        f"  {speed.frames_per_second:,.0f} frames/s; MFU {speed.mfu:.1%}; "
        f"{speed.hours:.1f} hours for {one.run.train.steps:,} steps",
    ]


def _measured_row(one: step_plan.StepPlan) -> tuple[str, ...]:
    got = one.measured
    if got is None:
        return ("",) * len(_MEASURED)
    gb = f"{got.peak_memory / 1e9:.1f}"
    if not got.fits:
        return ("out of memory", "", "", gb)
    speed = one.speed(got.step_seconds)
    milliseconds = f"{got.step_seconds * 1e3:.0f}"
    return milliseconds, f"{speed.frames_per_second:,.0f}", f"{speed.mfu:.1%}", gb


def _row(one: step_plan.StepPlan) -> tuple[str, ...]:
    start = (
        one.topology.name,
        _setting(one),
        f"{one.peak_hbm / 1e9:.1f} of {one.hbm_limit / 1e9:.1f}",
        "yes" if one.fits else "no",
        f"{one.flops.model_flops / 1e15:.3f}",
        f"{one.remat_flops / 1e15:.3f}",
    )
    t = one.times
    if t is None or not one.fits:
        return (*start, *[""] * (len(_COLUMNS) - len(start)))
    speed = one.speed(t.roofline)
    return (
        *start,
        *(f"{s * 1e3:.0f}" for s in (t.compute, t.hbm, t.collectives, t.roofline, t.expected)),
        t.bound,
        f"{speed.frames_per_second:,.0f}",
        f"{speed.mfu:.1%}",
        f"{one.speed(t.no_overlap).mfu:.1%}",
        f"{speed.hours:.1f}",
    )
