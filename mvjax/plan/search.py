"""The plans of a run on a topology: as it is, or the fastest setting that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mvjax.config import schema
from mvjax.plan import cost, estimate, from_compiler, gpus, measure
from mvjax.plan import text as plan_text
from mvjax.train import chips, sharding

SHOWN = 6  # settings of a search that are printed, tried or not
Trial = Callable[[schema.Config], cost.Plan]


def plans(
    run: schema.Config,
    topology: chips.Topology,
    *,
    fit: int,
    compiles: bool,
    cache: Path | None,
    say: Callable[[str], None],
) -> list[cost.Plan]:
    """Returns plans, the best first: those that were tried and fit by speed, then the others.

    A setting is tried by compiling it for a TPU slice, or by measuring it on GPUs that are here.

    Args:
      run: the config.
      topology: the chips.
      fit: how many settings to try, of the best by counting; 0: only the run's own.
      compiles: whether to try at all, or only to count.
      cache: of compiled steps.
      say: tells what takes long.

    Raises:
      ValueError: if the mesh or the rows do not divide, naming the best setting that does; or as
        `compiled.compile_step`.
    """
    trial, note = _trial(topology, cache, say) if compiles else (None, "")
    if not fit:
        run = cost.with_mesh(run, topology.devices)
        _check_rows(run, topology)
        if trial is not None:
            return [trial(run)]
        return [dataclasses.replace(estimate.estimated_plan(run, topology), note=note)]
    counted = [dataclasses.replace(one, note=note) for one in estimate.ranked(run, topology)]
    found = [] if trial is None else _tried(counted, trial, fit)
    tried = [one.run for one in found]
    found.sort(key=lambda one: (not one.fits, _seconds(one)))
    found += [one for one in counted if one.run not in tried]
    return found[: max(SHOWN, len(tried))]


def _tried(counted: Sequence[cost.Plan], trial: Trial, fit: int) -> list[cost.Plan]:
    """Tries the best by counting: `fit` of them, or up to as many again until one fits.

    What one took beyond its count corrects the counts of those after it: whose cannot fit then is left out.
    """
    found: list[cost.Plan] = []
    growth = 1.0
    for one in counted:
        enough = len(found) >= fit and any(other.fits for other in found)
        if enough or len(found) >= 2 * fit:
            break
        lasting = sum(one.memory[part] for part in cost.LASTING)
        if found and lasting + growth * (one.needed - lasting) > one.room:
            continue
        found.append(trial(one.run))
        if found[-1].compiled:
            growth = max(growth, (found[-1].needed - lasting) / (one.needed - lasting))
    return found


def settings_or_remedy(one: cost.Plan) -> str:
    """Returns the `--set` line of a plan that fits, or what would make it fit."""
    if one.fits:
        return f"this setting: {estimate.settings(one.run)}"
    return plan_text.remedy(one)


def _check_rows(run: schema.Config, topology: chips.Topology) -> None:
    mesh = sharding.abstract_mesh(run.mesh)
    try:
        sharding.check_rows(run.data, mesh, accumulate=run.train.grad_accum_steps)
    except ValueError as error:
        best = estimate.ranked(run, topology)[0]
        raise ValueError(
            f"{topology.name}: {error}\nthe best that divides them, by counting: "
            f"{estimate.settings(best.run)}; --fit looks for it"
        ) from error


def _trial(
    topology: chips.Topology, cache: Path | None, say: Callable[[str], None]
) -> tuple[Trial | None, str]:
    """Returns how to try a setting, or None and why that cannot be."""

    def compiles(run: schema.Config) -> cost.Plan:
        words = estimate.settings(run)
        say(f"{topology.name}: compiling {words} (minutes, unless cached)")
        return from_compiler.compiled_plan(run, topology, cache=cache)

    if topology.chip.kind == "tpu":
        return compiles, ""
    found = gpus.gpus(topology)

    def measures(run: schema.Config) -> cost.Plan:
        say(f"{topology.name}: measuring {estimate.settings(run)} (minutes)")
        one = measure.measure(run, found.devices)
        counted = estimate.estimated_plan(run, topology)
        return dataclasses.replace(counted, measured=one, fits=one.fits)

    return (measures, "") if found.devices else (None, found.reason)


def _seconds(one: cost.Plan) -> float:
    """Of a step, as far as it is known."""
    if one.measured is not None:
        return one.measured.seconds
    return one.times.step if one.times else 0.0
