"""The plans of a run on a topology: as it is, or the fastest setting that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mvjax import config
from mvjax.train import chips, plan, plan_compiled, plan_estimate, plan_text, sharding

SHOWN = 6  # settings of a search that are printed, compiled or not


def plans(
    run: config.Config,
    topology: chips.Topology,
    *,
    fit: int,
    compiles: bool,
    cache: Path | None,
    say: Callable[[str], None],
) -> list[plan.Plan]:
    """Returns plans, the best first: compiled ones that fit by speed, then the others.

    Args:
      run: the config.
      topology: the chips.
      fit: how many settings to compile, of the best by counting; 0: only the run's own.
      compiles: whether to compile at all; GPUs are always only counted.
      cache: of compiled steps.
      say: tells what takes long.

    Raises:
      ValueError: if the mesh or the rows do not divide, naming the best setting that does; or as
        `compiled.compile_step`.
    """
    compiles = compiles and topology.chip.kind == "tpu"
    if not fit:
        run = plan.with_mesh(run, topology.devices)
        _check_rows(run, topology)
        if not compiles:
            return [plan_estimate.estimated_plan(run, topology)]
        return [_compiled(run, topology, cache, say)]
    counted = plan_estimate.ranked(run, topology)
    found: list[plan.Plan] = []
    tried = 0
    for one in counted:
        if not compiles or (tried >= fit and any(other.fits for other in found)):
            break
        if tried >= 2 * fit:
            break
        found.append(_compiled(one.run, topology, cache, say))
        tried += 1
    found.sort(key=lambda one: (not one.fits, one.times.step if one.times else 0.0))
    return (found + counted[tried:])[: max(SHOWN, tried)]


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


def _compiled(
    run: config.Config, topology: chips.Topology, cache: Path | None, say: Callable[[str], None]
) -> plan.Plan:
    say(f"{topology.name}: compiling {plan_estimate.settings(run)} (minutes, unless cached)")
    return plan_compiled.compiled_plan(run, topology, cache=cache)
