"""A plan from the compiler: memory as it lays it out; FLOPs, HBM traffic and collectives of its program."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from mvjax.config import schema
from mvjax.plan import compiled_step, estimate, gpu_targets, hlo, hlo_cost, step_plan
from mvjax.train import chips, sharding


def compiled_plan(
    run: schema.Config, topology: chips.Topology, *, cache: Path | None
) -> step_plan.StepPlan:
    """Compiles the step for a topology and reads what the program will do.

    Where jaxlib cannot read the program, only memory is the compiler's and the rest is estimated.

    Raises:
      ValueError: as `compiled_step.topology_mesh` and `compile_step`.
    """
    mesh = compiled_step.topology_mesh(run, topology)
    arguments = compiled_step.step_arguments(run, mesh)
    compiled = compiled_step.compile_step(run, topology, mesh, arguments, cache=cache)
    memory = persistent_memory(arguments)
    gpus = topology.chip.kind == "gpu"
    granted = topology.usable_hbm if gpus else topology.chip.hbm_bytes
    plan = dataclasses.replace(
        estimate.estimated_plan(run, topology),
        memory=memory | compiled.memory,
        peak_hbm=compiled.peak_hbm,
        hbm_limit=compiled.hbm_limit or granted,
        fits=compiled.fits,
        compiled=True,
        compile_seconds=compiled.seconds,
    )
    if not compiled.fits:
        rest = max(compiled.peak_hbm - sum(memory.values()), 0.0)
        return dataclasses.replace(plan, memory={**memory, "temporaries": rest}, times=None)
    if not compiled.hlo:
        return plan
    within = topology.devices if gpus else topology.devices_per_slice
    cost = hlo_cost.program_cost(hlo.parse(compiled.hlo), devices=within)
    if gpus:  # described with one process a node; their slice_index is 0
        cost = between_nodes(cost, [device.process_index for device in mesh.devices.flat])
    received: dict[str, float] = collections.defaultdict(float)
    for one in cost.collectives:
        received[one.kind] += one.times * one.received
    again = (op for op in cost.ops if "rematted_computation" in op.op_name)
    remat = sum((op.times * op.flops for op in again), 0.0)
    return dataclasses.replace(
        plan,
        fits=plan.peak_hbm <= plan.hbm_limit,
        times=step_times(cost, topology, mesh),
        executed_flops=cost.flops * topology.devices,
        remat_flops=remat * topology.devices,
        hbm_traffic=cost.hbm_bytes,
        collective_bytes=dict(received),
        kernels=kernels(cost),
        from_hlo=True,
    )


def kernels(cost: hlo_cost.ProgramCost) -> dict[str, step_plan.Kernels]:
    """Returns what the kernels of each kind do in one step on one device, the most traffic first."""
    sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    for op in cost.ops:
        for index, value in enumerate((1.0, op.flops, op.hbm_bytes)):
            sums[op.kind][index] += op.times * value
    most = sorted(sums.items(), key=lambda item: -item[1][2])
    return {kind: step_plan.Kernels(*values) for kind, values in most}


def between_nodes(cost: hlo_cost.ProgramCost, node: Sequence[int]) -> hlo_cost.ProgramCost:
    """Returns the cost with what goes from node to node taken apart; `node` is that of each device.

    Of what n devices in s nodes receive, (s - 1) / (n - 1) comes from other nodes, if each value enters a
    node once and its devices' network cards share that; of a permutation all, if a pair of it crosses nodes.
    """
    parts: list[hlo_cost.Collective] = []
    for one in cost.collectives:
        members = one.groups[0]
        share = 0.0
        if one.kind == "collective-permute":
            share = float(any(node[a] != node[b] for a, b in one.groups))
        elif len(members) > 1:
            share = (len({node[n] for n in members}) - 1) / (len(members) - 1)
        if share:
            kind, size = hlo_cost.BETWEEN_SLICES, share * one.received
            parts.append(dataclasses.replace(one, kind=kind, received=size))
        parts.append(dataclasses.replace(one, received=(1 - share) * one.received))
    return dataclasses.replace(cost, collectives=parts)


def persistent_memory(arguments: compiled_step.StepArguments) -> dict[str, float]:
    """Returns the bytes on one device of what lives between steps, and of a batch, by part."""
    adapters = sharding.bytes_per_device(arguments.state.adapters)
    return {
        "frozen weights": sharding.bytes_per_device(arguments.frozen),
        "adapters": adapters,
        "optimizer": sharding.bytes_per_device(arguments.state) - adapters,
        "batch": sharding.bytes_per_device(arguments.batch),
    }


def step_times(
    cost: hlo_cost.ProgramCost, topology: chips.Topology, mesh: Mesh
) -> step_plan.StepTimes:
    """Returns the seconds of a program's matmuls, HBM traffic and collectives at published peak rates."""
    chip = topology.chip
    coordinates = [tuple(getattr(device, "coords", ())) for device in mesh.devices.flat]
    collectives = 0.0
    for one in cost.collectives:
        if one.kind == hlo_cost.BETWEEN_SLICES:
            assert chip.network_bandwidth is not None
            collectives += one.times * one.received / chip.network_bandwidth
            continue
        members = one.groups[0]
        if one.kind == "collective-permute":  # a ring over all devices that take part
            members = sorted({n for pair in one.groups for n in pair})[: topology.devices_per_slice]
        bandwidth = topology.group_bandwidth([coordinates[n] for n in members])
        collectives += one.times * one.received / bandwidth
    serial = sum(
        op.times * max(op.flops / chip.peak_flops, op.hbm_bytes / chip.hbm_bandwidth)
        for op in cost.ops
    )
    return step_plan.StepTimes(
        compute=cost.flops / chip.peak_flops,
        hbm=cost.hbm_bytes / chip.hbm_bandwidth,
        collectives=collectives,
        no_overlap=serial + collectives,
        kernels=_kernel_seconds(cost, chip) if chip.kind == "gpu" else None,
    )


def _kernel_seconds(cost: hlo_cost.ProgramCost, chip: chips.Chip) -> float:
    """Returns the seconds of a GPU's kernels, which run one after the other, at rates measured on one."""
    memory = chip.hbm_bandwidth * gpu_targets.REACHED_OF_MEMORY
    return sum(
        op.times
        * max(
            op.flops / (chip.peak_flops * gpu_targets.REACHED.get(op.kind, 1.0)),
            op.hbm_bytes / memory,
        )
        for op in cost.ops
    )
