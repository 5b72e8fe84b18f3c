"""Matmul FLOPs, HBM traffic and collectives of a compiled program on one device, loops multiplied out.

XLA's own cost analysis counts the body of a loop once; here every instruction carries how often it runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from mvjax.plan import hlo, hlo_ops

# These move nothing: names for values, or the second half of a pair whose first half is counted.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "iota", "copy-done", "slice-done", "add-dependency",
}  # fmt: skip


# The kind of exchange that leaves the slice: libtpu gives it to the host, which sends it over the network.
BETWEEN_SLICES = "between slices"


@dataclasses.dataclass(frozen=True)
class Op:
    """An instruction that computes or moves something."""

    op_name: str  # the operation of the traced program that it was made for
    times: float  # it runs in one step
    flops: float  # of its matmuls, each time
    hbm_bytes: float  # read from and written to HBM, each time
    kind: str = "collectives"  # of kernel


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices."""

    kind: str  # such as all-gather
    times: float  # it runs in one step
    received: float  # bytes into one device, each time, by the algorithm that needs least
    groups: list[list[int]]  # devices that exchange with each other, by number


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """All that one device does in one step."""

    ops: list[Op]
    collectives: list[Collective]

    @property
    def flops(self) -> float:
        """Of all matmuls and attention kernels."""
        return sum((op.times * op.flops for op in self.ops), 0.0)

    @property
    def hbm_bytes(self) -> float:
        """Between the device and its HBM."""
        return sum((op.times * op.hbm_bytes for op in self.ops), 0.0)


def program_cost(module: hlo.Module, *, devices: int) -> ProgramCost:
    """Returns the cost of a program that runs on so many devices, walked from its entry."""
    cost = ProgramCost([], [])
    _Walker(module, devices, cost).walk(module.computations[module.entry], 1.0)
    return cost


@dataclasses.dataclass(frozen=True)
class _Walker:
    module: hlo.Module
    devices: int
    cost: ProgramCost

    def walk(self, computation: hlo.Computation, times: float) -> None:
        """Adds the cost of a computation that runs so many times."""
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode in _FREE or opcode.endswith("-done"):
                continue
            if opcode == "while":
                trips = times * trip_count(self.module, computation, instruction)
                self.walk(self.module.called(instruction, "body"), trips)
            elif opcode == "call":
                self.walk(self.module.called(instruction, "to_apply"), times)
            elif opcode == "conditional":
                self._branches(instruction, times)
            elif opcode.removesuffix("-start") in hlo_ops.COLLECTIVES:
                self._collective(computation, instruction, times)
            elif "xla_megascale" in instruction.attributes and opcode in ("send", "recv"):
                self._between_slices(instruction, times)
            else:
                self._op(computation, instruction, times)

    def _branches(self, instruction: hlo.Instruction, times: float) -> None:
        """Charges the most expensive branch."""
        names = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        text = names[1] if names else instruction.attributes
        costs = []
        for name in re.findall(r"%([\w.\-]+)", text):
            if name in self.module.computations:
                costs.append(ProgramCost([], []))
                walker = _Walker(self.module, self.devices, costs[-1])
                walker.walk(self.module.computations[name], times)
        if costs:
            most = max(costs, key=lambda cost: (cost.flops, cost.hbm_bytes))
            self.cost.ops.extend(most.ops)
            self.cost.collectives.extend(most.collectives)

    def _op(self, computation: hlo.Computation, instruction: hlo.Instruction, times: float) -> None:
        op_name, flops = instruction.op_name, 0.0
        if instruction.opcode == "fusion":
            for inner_computation, inner in self._inside(self.module.called(instruction)):
                if inner.opcode.removesuffix("-start") in hlo_ops.COLLECTIVES:
                    self._collective(inner_computation, inner, times)
                one = hlo_ops.matmul_flops(inner_computation, inner)
                op_name = inner.op_name if one > flops else op_name
                flops += one
        elif instruction.opcode == "custom-call":
            flops = hlo_ops.kernel_flops(computation, instruction)
        else:
            flops = hlo_ops.matmul_flops(computation, instruction)
        moved = hlo_ops.hbm_traffic(self.module, computation, instruction)
        if flops or moved:
            kind = hlo_ops.kernel_kind(self.module, instruction, flops)
            self.cost.ops.append(Op(op_name, times, flops, moved, kind))

    def _inside(
        self, computation: hlo.Computation
    ) -> Iterator[tuple[hlo.Computation, hlo.Instruction]]:
        """Yields all instructions of a fusion, also of fusions in it."""
        for instruction in computation.instructions.values():
            yield computation, instruction
            if instruction.opcode == "fusion":
                yield from self._inside(self.module.called(instruction))

    def _collective(
        self, computation: hlo.Computation, instruction: hlo.Instruction, times: float
    ) -> None:
        """Charges an exchange at its start: it may be a chain over several fusions, into an inner loop."""
        attributes = instruction.attributes
        if "chain_id=" in attributes and '"flag_start":"-1"' not in attributes:
            return
        kind = instruction.opcode.removesuffix("-start")
        groups = hlo.groups(instruction, self.devices)
        sent = sum(shape.bytes for shape in computation.operand_shapes(instruction))
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        n = len(groups[0])
        received = {
            "all-gather": sent * (n - 1),
            "all-reduce": 2 * sent * (n - 1) / n,
            "collective-permute": sent,
            "collective-broadcast": sent,
        }.get(kind, sent * (n - 1) / n)
        self.cost.collectives.append(Collective(kind, times, received, groups))
        inputs, ends = computation.operand_shapes(instruction), list(instruction.shapes)
        if len(ends) < 2 * len(inputs):  # those of a -start are (operands, results, ...)
            ends += inputs
        moved = sum(shape.hbm_bytes for shape in ends)
        self.cost.ops.append(Op(instruction.op_name, times, 0.0, moved))

    def _between_slices(self, instruction: hlo.Instruction, times: float) -> None:
        """Charges what comes back of an exchange; both of its halves go through HBM."""
        size = float(instruction.shapes[0].bytes)
        if instruction.opcode == "recv":
            self.cost.collectives.append(Collective(BETWEEN_SLICES, times, size, []))
        self.cost.ops.append(Op(instruction.op_name, times, 0.0, size))


def trip_count(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
    """Returns how often the body of a loop runs, from its counter's start, step and limit.

    Raises:
      ValueError: if the loop does not count up to a constant.
    """
    known = re.search(r"known_trip_count\W+n\W+(\d+)", instruction.attributes)
    if known:
        return float(known[1])
    condition = module.called(instruction, "condition")
    compare = condition.root
    if compare.opcode == "fusion":
        compare = module.called(compare).root
    limits = [_constant(condition, name) for name in condition.root.operands]
    counters = [condition.instructions[name].attribute("index") for name in condition.root.operands]
    limit = next((value for value in limits if value is not None), None)
    index = next((int(number) for number in counters if number is not None), None)
    if limit is None or index is None or "direction=LT" not in compare.attributes:
        raise ValueError(f"HLO: {instruction.name}: expected a loop that counts up to a constant")
    body = module.called(instruction, "body")
    step, after = 1, _through_copies(body, body.root.operands[index])
    if after.opcode == "add":
        step = next((v for name in after.operands if (v := _constant(body, name))), 1)
    entering = computation.instructions[instruction.operands[0]]
    start = _constant(computation, entering.operands[index]) if entering.opcode == "tuple" else 0
    return float(math.ceil((limit - (start or 0)) / step))


def _constant(computation: hlo.Computation, name: str) -> int | None:
    """Returns the value of an integer constant."""
    instruction = _through_copies(computation, name)
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.literal):
        return None
    return int(instruction.literal)


def _through_copies(computation: hlo.Computation, name: str) -> hlo.Instruction:
    """Returns the instruction that a value was copied from."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction
