"""The plans of a run on a topology: as it is, or the fastest setting that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mvjax import config
from mvjax.train import (
    chips,
    measured,
    plan,
    plan_compiled,
    plan_estimate,
    plan_text,
    present,
    sharding,
)

SHOWN = 6  # settings of a search that are printed, tried or not
Trial = Callable[[config.Config], plan.Plan]


def plans(
    run: config.Config,
    topology: chips.Topology,
    *,
    fit: int,
    compiles: bool,
    cache: Path | None,
    say: Callable[[str], None],
) -> list[plan.Plan]:
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
        run = plan.with_mesh(run, topology.devices)
        _check_rows(run, topology)
        if trial is not None:
            return [trial(run)]
        return [dataclasses.replace(plan_estimate.estimated_plan(run, topology), note=note)]
    counted = [dataclasses.replace(one, note=note) for one in plan_estimate.ranked(run, topology)]
    found = [] if trial is None else _tried(counted, trial, fit)
    tried = [one.run for one in found]
    found.sort(key=lambda one: (not one.fits, _seconds(one)))
    found += [one for one in counted if one.run not in tried]
    return found[: max(SHOWN, len(tried))]


def _tried(counted: Sequence[plan.Plan], trial: Trial, fit: int) -> list[plan.Plan]:
    """Tries the best by counting: `fit` of them, or up to as many again until one fits.

    What one took beyond its count corrects the counts of those after it: whose cannot fit then is left out.
    """
    found: list[plan.Plan] = []
    growth = 1.0
    for one in counted:
        enough = len(found) >= fit and any(other.fits for other in found)
        if enough or len(found) >= 2 * fit:
            break
        lasting = sum(one.memory[part] for part in plan.LASTING)
        if found and lasting + growth * (one.needed - lasting) > one.room:
            continue
        found.append(trial(one.run))
        if found[-1].compiled:
            growth = max(growth, (found[-1].needed - lasting) / (one.needed - lasting))
    return found


def settings_or_remedy(one: plan.Plan) -> str:
    """Returns the `--set` line of a plan that fits, or what would make it fit."""
    if one.fits:
        return f"this setting: {plan_estimate.settings(one.run)}"
    return plan_text.remedy(one)


def _check_rows(run: config.Config, topology: chips.Topology) -> None:
    mesh = sharding.abstract_mesh(run.mesh)
    try:
        sharding.check_rows(run.data, mesh, accumulate=run.train.accumulate)
    except ValueError as error:
        best = plan_estimate.ranked(run, topology)[0]
        raise ValueError(
            f"{topology.name}: {error}\nthe best that divides them, by counting: "
            f"{plan_estimate.settings(best.run)}; --fit looks for it"
        ) from error


def _trial(
    topology: chips.Topology, cache: Path | None, say: Callable[[str], None]
) -> tuple[Trial | None, str]:
    """Returns how to try a setting, or None and why that cannot be."""

    def compiles(run: config.Config) -> plan.Plan:
        words = plan_estimate.settings(run)
        say(f"{topology.name}: compiling {words} (minutes, unless cached)")
        return plan_compiled.compiled_plan(run, topology, cache=cache)

    if topology.chip.kind == "tpu":
        return compiles, ""
    found = present.gpus(topology)

    def measures(run: config.Config) -> plan.Plan:
        say(f"{topology.name}: measuring {plan_estimate.settings(run)} (minutes)")
        one = measured.measure(run, found.devices)
        counted = plan_estimate.estimated_plan(run, topology)
        return dataclasses.replace(counted, measured=one, fits=one.fits)

    return (measures, "") if found.devices else (None, found.reason)


def _seconds(one: plan.Plan) -> float:
    """Of a step, as far as it is known."""
    if one.measured is not None:
        return one.measured.seconds
    return one.times.step if one.times else 0.0
