"""Parses the text of a compiled HLO module: computations, instructions, shapes, replica groups."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_BRACKETS = re.compile(r"[()]")
_COMMENT = re.compile(r"/\*.*?\*/")
_SPACE = re.compile(r"S\((\d+)\)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shape of an array; memory space 0 is HBM, others are on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes, without the padding of tiles."""
        digits = re.search(r"\d+", self.dtype)
        bits = int(digits[0]) if digits else _BITS[self.dtype]
        return self.size * bits / 8

    @property
    def hbm_bytes(self) -> float:
        """Bytes if it lies in HBM, else 0."""
        return self.bytes if self.space == 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = shapes opcode(operands), attributes`."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool
    literal: str = ""  # between the brackets of a constant or parameter

    def attribute(self, name: str) -> str | None:
        """Returns the word after `name=`, such as a computation's name."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    @property
    def op_name(self) -> str:
        """The operation of the traced program that it was made for."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A sequence of instructions, by name."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose value it returns."""
        return next(i for i in reversed(self.instructions.values()) if i.root)

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        """Returns the shapes of an instruction's operands, tuples taken apart."""
        return [s for name in instruction.operands for s in self.instructions[name].shapes]

    def parameters(self) -> list[Instruction]:
        """Returns the parameters in order."""
        unordered = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(unordered, key=lambda i: int(i.literal))


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations of a program, and the name of the one that runs."""

    computations: dict[str, Computation]
    entry: str

    def called(self, instruction: Instruction, attribute: str = "calls") -> Computation:
        """Returns the computation that an instruction names."""
        name = instruction.attribute(attribute)
        assert name is not None, f"{instruction.name}: no {attribute}="
        return self.computations[name]


def parse(text: str) -> Module:
    """Parses what `compiled.as_text()` returns.

    Raises:
      ValueError: if the text has no ENTRY computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _logical_lines(text):
        if current is None:
            head = _COMPUTATION.match(line)
            if head:
                current = Computation(head[2], {})
                computations[head[2]] = current
                entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        else:
            match = _INSTRUCTION.match(line)
            if match:
                current.instructions[match[2]] = _instruction(match[2], match[3], bool(match[1]))
    if not entry:
        raise ValueError("HLO: expected a module with an ENTRY computation, found none")
    return Module(computations, entry)


def _logical_lines(text: str) -> Iterator[str]:
    """Yields instructions, without comments: metadata of a kernel may contain line breaks."""
    pending = ""
    for line in _COMMENT.sub("", text).splitlines():
        if pending.startswith("  ") and line != "}" and not line.startswith("  "):
            pending += line
            continue
        yield pending
        pending = line
    yield pending


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    close = _closing("(" + rest) - 1
    inside, attributes = rest[: close - 1], rest[close:]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode, _shapes(shape), operands, attributes, root, inside)


def _shapes(text: str) -> tuple[Shape, ...]:
    shapes = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(d) for d in dims.split(",") if d)
        shapes.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(shapes)


def _closing(text: str) -> int:
    """Returns the position after the bracket that closes the first one."""
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.end()
    raise ValueError(f"HLO: unclosed bracket in {text[:200]}")


def groups(instruction: Instruction, devices: int) -> list[list[int]]:
    """Returns the groups of devices that a collective runs in, by number.

    Raises:
      ValueError: for a form of `replica_groups` that this reader does not know.
    """
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", instruction.attributes)
    if pairs:
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])]
    listed = re.search(r"replica_groups=(.*)", instruction.attributes)
    text = listed[1] if listed else "{}"
    if text.startswith("{}"):
        return [list(range(devices))]
    if text.startswith("{{"):
        inner = text[1 : text.index("}}") + 1]
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", inner)]
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        return _iota(iota[2], iota[3]).reshape(_ints(iota[1])).tolist()
    mesh = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? ?\{([^}]*)\}", text)
    if mesh:
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    raise ValueError(f"HLO: {instruction.name}: unknown form of replica_groups: {text[:120]}")


def _mesh_groups(axes: str, device_ids: str | None, grouped: str) -> list[list[int]]:
    """Returns groups along some axes of a mesh: `'a':(2)4` is part of axis a, with 2 before it and size 4."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", device_ids or "")
    ids = _iota(order[1], order[2]) if order else np.arange(math.prod(sizes.values()))
    parts = {
        axis: (int(before or 1), int(width or sizes[axis]))
        for axis, before, width in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", grouped)
    }
    split: list[int] = []
    for name, size in sizes.items():  # each in three: before, inside and after the part grouped
        before, width = parts.get(name, (size, 1))
        split += [before, width, size // (before * width)]
    inside = list(range(1, len(split), 3))
    outside = [axis for axis in range(len(split)) if axis not in inside]
    count = math.prod(split[1::3])
    return ids.reshape(split).transpose(outside + inside).reshape(-1, count).tolist()


def _iota(shape: str, order: str | None) -> np.ndarray:
    """Returns device numbers in a shape such as "2,4", its axes transposed to an order such as "1,0"."""
    ids = np.arange(math.prod(_ints(shape))).reshape(_ints(shape))
    return ids.transpose(_ints(order)) if order else ids


def _ints(text: str) -> Sequence[int]:
    return [int(n) for n in text.split(",")]
