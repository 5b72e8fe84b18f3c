"""What a compiled program does on one device: products, memory traffic and collectives, loops multiplied out.

XLA's own cost analysis counts the body of a loop once; here every instruction carries how often it runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from mvjax.plan import hlo, hlo_ops

# These move nothing: names for values, or the other half of a pair that was counted.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "iota", "copy-done", "slice-done", "add-dependency",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Op:
    """An instruction that computes or moves something.

    Attributes:
      place: of the traced program (`op_name`).
      times: it runs in one step.
      flops: of its products, each time.
      bytes: read from and written to main memory, each time.
    """

    place: str
    times: float
    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
      kind: such as all-gather.
      place: of the traced program.
      times: it runs in one step.
      received: bytes that come into one device, each time, by the algorithm that needs least.
      groups: devices that exchange with each other, by number.
      overlaps: whether the compiler runs it beside other work.
    """

    kind: str
    place: str
    times: float
    received: float
    groups: list[list[int]]
    overlaps: bool


@dataclasses.dataclass(frozen=True)
class Cost:
    """All that one device does in one step."""

    ops: list[Op]
    collectives: list[Collective]

    @property
    def flops(self) -> float:
        """Of all products and kernels."""
        return sum(op.times * op.flops for op in self.ops)

    @property
    def bytes(self) -> float:
        """Between the device and its main memory."""
        return sum(op.times * op.bytes for op in self.ops)


def cost(module: hlo.Module, *, devices: int) -> Cost:
    """Walks the program from its entry."""
    found = Cost([], [])
    _Walker(module, devices, found).walk(module.computations[module.entry], 1.0)
    return found


@dataclasses.dataclass(frozen=True)
class _Walker:
    module: hlo.Module
    devices: int
    found: Cost

    def walk(self, computation: hlo.Computation, times: float) -> None:
        """Adds what a computation does when it runs so many times."""
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode in _FREE or opcode.endswith("-done"):
                continue
            if opcode == "while":
                often = times * trip_count(self.module, computation, instruction)
                self.walk(self.module.called(instruction, "body"), often)
            elif opcode == "call":
                self.walk(self.module.called(instruction, "to_apply"), times)
            elif opcode == "conditional":
                self._branches(instruction, times)
            elif opcode.removesuffix("-start") in hlo_ops.COLLECTIVES:
                self._collective(computation, instruction, times)
            else:
                self._op(computation, instruction, times)

    def _branches(self, instruction: hlo.Instruction, times: float) -> None:
        """The dearest branch counts."""
        names = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        text = names[1] if names else instruction.attributes
        branches = [n for n in re.findall(r"%([\w.\-]+)", text) if n in self.module.computations]
        tried = []
        for name in branches:
            one = Cost([], [])
            walker = _Walker(self.module, self.devices, one)
            walker.walk(self.module.computations[name], times)
            tried.append(one)
        if tried:
            best = max(tried, key=lambda one: (one.flops, one.bytes))
            self.found.ops.extend(best.ops)
            self.found.collectives.extend(best.collectives)

    def _op(
        self,
        computation: hlo.Computation,
        instruction: hlo.Instruction,
        times: float,
    ) -> None:
        place, flops = instruction.op_name, 0.0
        if instruction.opcode == "fusion":
            for inner_computation, inner in self._inside(self.module.called(instruction)):
                if inner.opcode.removesuffix("-start") in hlo_ops.COLLECTIVES:
                    self._collective(inner_computation, inner, times)
                one = hlo_ops.product_flops(inner_computation, inner)
                place = inner.op_name if one > flops else place
                flops += one
        elif instruction.opcode == "custom-call":
            flops = hlo_ops.kernel_flops(computation, instruction)
        else:
            flops = hlo_ops.product_flops(computation, instruction)
        moved = hlo_ops.traffic(self.module, computation, instruction)
        if flops or moved:
            self.found.ops.append(Op(place, times, flops, moved))

    def _inside(
        self, computation: hlo.Computation
    ) -> Iterator[tuple[hlo.Computation, hlo.Instruction]]:
        """All instructions of a fusion, also of fusions in it."""
        for instruction in computation.instructions.values():
            yield computation, instruction
            if instruction.opcode == "fusion":
                yield from self._inside(self.module.called(instruction))

    def _collective(
        self,
        computation: hlo.Computation,
        instruction: hlo.Instruction,
        times: float,
    ) -> None:
        """One exchange may be a chain over several fusions, also into an inner loop; its start counts."""
        chained = "chain_id=" in instruction.attributes
        if chained and '"flag_start":"-1"' not in instruction.attributes:
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
            "reduce-scatter": sent * (n - 1) / n,
            "all-to-all": sent * (n - 1) / n,
            "ragged-all-to-all": sent * (n - 1) / n,
        }.get(kind, sent)
        overlaps = instruction.opcode.endswith("-start") or chained
        place = instruction.op_name
        self.found.collectives.append(Collective(kind, place, times, received, groups, overlaps))
        ends = computation.operand_shapes(instruction) + list(instruction.shapes)
        if len(ends) > 2 and instruction.opcode.endswith("-start"):
            ends = list(instruction.shapes)  # (operand, result, ...)
        self.found.ops.append(Op(place, times, 0.0, sum(shape.main_bytes for shape in ends)))


def trip_count(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
    """Returns how often the body of a loop runs: from its counter's start, step and limit.

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
    step = 1
    after = body.instructions[body.root.operands[index]]
    while after.opcode in ("copy", "bitcast"):
        after = body.instructions[after.operands[0]]
    if after.opcode == "add":
        step = next((v for v in map(lambda n: _constant(body, n), after.operands) if v), 1)
    entering = computation.instructions[instruction.operands[0]]
    start = None
    if entering.opcode == "tuple":
        start = _constant(computation, entering.operands[index])
    return float(math.ceil((limit - (start or 0)) / step))


def _constant(computation: hlo.Computation, name: str) -> int | None:
    """Returns the value of an integer constant, through copies."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast"):
        instruction = computation.instructions[instruction.operands[0]]
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.literal):
        return None
    return int(instruction.literal)
