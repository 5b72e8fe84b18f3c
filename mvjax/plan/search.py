"""Searches for the fastest mesh, remat policy and gradient accumulation that fit a topology."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

from mvjax import tree
from mvjax.config import schema
from mvjax.plan import estimate, from_compiler, gpu_targets, gpus, measure, step_plan
from mvjax.train import chips, load, sharding

SHOWN = 6  # settings of a search that are printed, tried or not
REMATS: tuple[schema.Remat, ...] = get_args(schema.Remat)
GRAD_ACCUM_STEPS = (1, 2, 4, 8)
Trial = Callable[[schema.Config], step_plan.StepPlan]


def plans(
    run: schema.Config,
    topology: chips.Topology,
    *,
    fit: int,
    estimate_only: bool,
    cache: Path | None,
    say: Callable[[str], None],
    measured: bool = True,
) -> list[step_plan.StepPlan]:
    """Returns plans, the best first: those that were tried and fit, by speed, then the others.

    A setting is tried by compiling it, or by measuring it on GPUs that are here, if `measured`: the `fit`
    best by estimate, or with 0 the run's own. `say` gets a message before each trial, which takes minutes.

    Raises:
      ValueError: if mesh or rows do not divide, naming the best setting that does; or as
        `from_compiler.compiled_plan`.
    """
    trial, note = (None, "") if estimate_only else _trial(topology, cache, say, measured)
    if not fit:
        run = fitted(run, topology)
        if trial is not None:
            return [trial(run)]
        return [dataclasses.replace(estimate.estimated_plan(run, topology), note=note)]
    estimates = [dataclasses.replace(one, note=note) for one in ranked(run, topology)]
    tried = [] if trial is None else _tried(estimates, trial, fit)
    tried.sort(key=lambda one: (not one.fits, _step_seconds(one)))
    runs = [one.run for one in tried]
    return (tried + [one for one in estimates if one.run not in runs])[: max(SHOWN, len(tried))]


def with_mesh(run: schema.Config, devices: int) -> schema.Config:
    """Returns the run with the -1 of its mesh filled in.

    Raises:
      ValueError: if the mesh does not multiply to the devices.
    """
    shape = sharding.mesh_shape(run.mesh, devices)
    mesh = dataclasses.replace(run.mesh, **dict(zip(sharding.AXES, shape, strict=True)))
    return dataclasses.replace(run, mesh=mesh)


def ranked(run: schema.Config, topology: chips.Topology) -> list[step_plan.StepPlan]:
    """Returns estimates of all settings: those that fit first, then the fastest, then the leanest.

    Raises:
      ValueError: if no mesh divides the rows and the heads.
    """
    params = load.abstract_params(run)
    estimates = [
        estimate.estimated_plan(one, topology, params=params)
        for one in candidates(run, topology, params)
    ]
    if not estimates:
        raise ValueError(
            f"--topology {topology.name}: no mesh of {topology.devices} devices divides "
            f"data.speech_rows={run.data.speech_rows} and data.speechless_rows="
            f"{run.data.speechless_rows}, and the model's heads; change the rows"
        )

    def rank(one: step_plan.StepPlan) -> tuple[bool, float, float]:
        assert one.times is not None
        return (not one.fits, round(one.times.expected, 3), one.peak_hbm)

    return sorted(estimates, key=rank)


def candidates(
    run: schema.Config, topology: chips.Topology, params: load.ModelParams
) -> Iterator[schema.Config]:
    """Yields the run with every mesh, remat policy and gradient accumulation that its sizes allow."""
    devices, data, model = topology.devices, run.data, run.model
    rows = [n for n in (data.speech_rows, data.speechless_rows) if n]
    heads = (model.backbone.heads, model.depformer.heads, model.siglip.heads)
    for shards in _divisors(devices):
        tensor = devices // shards
        if any(n % shards for n in rows) or any(n % tensor for n in heads):
            continue
        for fsdp in _divisors(shards):
            if shards // fsdp % topology.slices:
                continue
            mesh = dataclasses.replace(run.mesh, data=shards // fsdp, fsdp=fsdp, tensor=tensor)
            try:
                sharding.shardings(tree.merge(*params), sharding.abstract_mesh(mesh))
            except ValueError:  # the mesh does not divide the parameters
                continue
            for remat, steps in itertools.product(REMATS, GRAD_ACCUM_STEPS):
                if not any(n % (shards * steps) for n in rows):
                    train = dataclasses.replace(run.train, remat=remat, grad_accum_steps=steps)
                    yield dataclasses.replace(run, mesh=mesh, train=train)


def settings(run: schema.Config) -> str:
    """Returns the `--set` words that give a run's mesh, remat policy and gradient accumulation."""
    names = ("mesh.data", "mesh.fsdp", "mesh.tensor", "train.remat", "train.grad_accum_steps")
    return " ".join(f"--set {name}={operator.attrgetter(name)(run)}" for name in names)


def advice(one: step_plan.StepPlan) -> str:
    """Returns the `--set` words of a plan that fits; else of the best that needs less memory, by estimate."""
    if one.fits:
        return f"this setting: {settings(one.run)}"
    estimates = ranked(one.run, one.topology)
    leaner = [other for other in estimates if other.fits and other.peak_hbm < one.peak_hbm]
    if leaner:
        best = leaner[0]
        return (
            f"what would make it fit, by estimate ({best.peak_hbm / 1e9:.1f} GB of "
            f"{best.hbm_limit / 1e9:.1f}): {settings(best.run)}\n"
            "--fit tries the best few and picks one"
        )
    least = min(estimates, key=lambda other: other.peak_hbm)
    return (
        f"nothing makes this batch fit {one.topology.name}: the leanest setting "
        f"({settings(least.run)}) needs {least.peak_hbm / 1e9:.1f} GB of "
        f"{least.hbm_limit / 1e9:.1f}; take more chips, fewer rows, or train.frozen_dtype=int8"
    )


def _tried(
    estimates: Sequence[step_plan.StepPlan], trial: Trial, fit: int
) -> list[step_plan.StepPlan]:
    """Tries the best by estimate: `fit` of them, or up to as many again until one fits.

    What a compiled one took beyond its estimate corrects those after it: what then cannot fit is left out.
    """
    tried: list[step_plan.StepPlan] = []
    growth = 1.0
    for one in estimates:
        enough = len(tried) >= fit and any(other.fits for other in tried)
        if enough or len(tried) >= 2 * fit:
            break
        persistent = sum(one.memory[part] for part in step_plan.PERSISTENT)
        if tried and persistent + growth * (one.peak_hbm - persistent) > one.hbm_limit:
            continue
        tried.append(trial(one.run))
        if tried[-1].compiled:
            actual = tried[-1].peak_hbm - persistent
            growth = max(growth, actual / (one.peak_hbm - persistent))
    return tried


def fitted(run: schema.Config, topology: chips.Topology) -> schema.Config:
    """Returns the run with its mesh filled in.

    Raises:
      ValueError: if the devices do not divide the mesh, or the mesh the rows, naming a setting that does.
    """
    try:
        filled = with_mesh(run, topology.devices)
        sharding.check_slices(filled.mesh.data, topology.slices)
        mesh = sharding.abstract_mesh(filled.mesh)
        sharding.check_rows(run.data, mesh, grad_accum_steps=run.train.grad_accum_steps)
    except ValueError as error:
        found = ranked(run, topology)
        alike = [one for one in found if one.fits and one.run.train == run.train]
        raise ValueError(
            f"{topology.name}: {error}\nthe best setting that divides them, by estimate: "
            f"{settings((alike or found)[0].run)}; `mvjax plan --fit` compares more"
        ) from error
    return filled


def _trial(
    topology: chips.Topology, cache: Path | None, say: Callable[[str], None], measured: bool
) -> tuple[Trial | None, str]:
    """Returns how to try a setting, or None and why that cannot be."""

    def compiles(run: schema.Config) -> step_plan.StepPlan:
        say(f"{topology.name}: compiling {settings(run)} (minutes, unless cached)")
        return from_compiler.compiled_plan(run, topology, cache=cache)

    if topology.chip.kind == "tpu":
        return compiles, ""
    devices, reason = gpus.local_gpus(topology) if measured else ((), "")

    def measures(run: schema.Config) -> step_plan.StepPlan:
        say(f"{topology.name}: measuring {settings(run)} (minutes)")
        one = measure.measure(run, devices)
        estimated = estimate.estimated_plan(run, topology)
        return dataclasses.replace(estimated, measured=one, fits=one.fits)

    if devices:
        return measures, ""
    if gpu_targets.installed():
        return compiles, ""
    remedy = f'not compiled: needs `pip install "mvjax[{gpu_targets.EXTRA}]"` (4.6 GB; no GPU)'
    return None, f"not measured: {reason}; {remedy}" if reason else remedy


def _step_seconds(one: step_plan.StepPlan) -> float:
    """Returns the time per step: measured, else the expected one, else 0."""
    if one.measured is not None:
        return one.measured.step_seconds
    return one.times.expected if one.times else 0.0


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
