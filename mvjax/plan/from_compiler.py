"""A plan from the compiler: memory as it lays it out, operations and traffic as its program has them."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import jax

from mvjax.config import schema
from mvjax.plan import compiled_step, estimate, hlo, hlo_cost
from mvjax.plan import cost as cost_lib
from mvjax.train import chips
from mvjax.train import flops as flops_lib


def compiled_plan(
    run: schema.Config, topology: chips.Topology, *, cache: Path | None
) -> cost_lib.Plan:
    """Compiles the step for a TPU topology and reads from the program what it will do.

    Where jaxlib cannot read the program, only memory is the compiler's and the rest is counted.

    Raises:
      ValueError: as `compiled.compile_step`.
    """
    found = compiled_step.compile_step(run, topology, cache=cache)
    mesh = compiled_step.slice_mesh(run, topology)
    memory = arguments_memory(run, mesh)
    flops = flops_lib.step_flops(run)
    room = found.room or topology.chip.hbm_bytes
    common = {"run": run, "topology": topology, "flops": flops, "compiled": True}
    if not found.fits:
        rest = max(found.needed - sum(memory.values()), 0.0)
        return cost_lib.Plan(
            **common, memory={**memory, "temporaries": rest}, needed=found.needed, room=room,
            fits=False, times=None, executed=0.0, recomputed=0.0, traffic=0.0, collectives={},
            seconds=found.seconds,
        )  # fmt: skip
    memory["temporaries"] = found.memory["temp"]
    memory["code"] = found.memory["generated_code"]
    if not found.text:
        return dataclasses.replace(
            estimate.estimated_plan(run, topology), memory=memory, needed=found.needed,
            room=room, fits=True, compiled=True, seconds=found.seconds,
        )  # fmt: skip
    cost = hlo_cost.cost(hlo.parse(found.text), devices=topology.devices)
    received: dict[str, float] = collections.defaultdict(float)
    for one in cost.collectives:
        received[one.kind] += one.times * one.received
    again = sum(op.times * op.flops for op in cost.ops if "rematted_computation" in op.place)
    return cost_lib.Plan(
        **common,
        memory=memory,
        needed=found.needed,
        room=room,
        fits=found.needed <= room,
        times=times(cost, topology, mesh),
        executed=cost.flops * topology.devices,
        recomputed=again * topology.devices,
        traffic=cost.bytes,
        collectives=dict(received),
        read=True,
        seconds=found.seconds,
    )


def arguments_memory(run: schema.Config, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Returns bytes on one device of what lives from step to step, by part, and of a batch."""
    state, frozen, batch = compiled_step.step_arguments(run, mesh)
    adapters = compiled_step.bytes_per_device(state.adapters)
    return {
        "frozen weights": compiled_step.bytes_per_device(frozen),
        "adapters": adapters,
        "optimizer": compiled_step.bytes_per_device(state) - adapters,
        "batch": compiled_step.bytes_per_device(batch),
    }


def times(cost: hlo_cost.Cost, topology: chips.Topology, mesh: jax.sharding.Mesh) -> cost_lib.Times:
    """Returns how long the parts of a program take at the published rates."""
    chip = topology.chip
    places = [tuple(device.coords) for device in mesh.devices.flat]
    ici = 0.0
    for one in cost.collectives:
        members = one.groups[0]
        if one.kind == "collective-permute":  # a ring over all who take part
            members = sorted({n for pair in one.groups for n in pair})[: topology.devices]
        rate = topology.group_bandwidth([places[n] for n in members])
        ici += one.times * one.received / rate
    serial = sum(
        op.times * max(op.flops / chip.peak_flops, op.bytes / chip.hbm_bandwidth) for op in cost.ops
    )
    return cost_lib.Times(
        cost.flops / chip.peak_flops, cost.bytes / chip.hbm_bandwidth, ici, serial + ici
    )
