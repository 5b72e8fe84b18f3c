"""One rule of a file format: which of our axes go where in upstream's tensors.

    Rule("blocks/attn/qkv/kernel", "layers.{layer}.in_proj_weight", "layer D 3 N H -> (3 N H) D")

says that our leaf has the axes (layer, D, 3, N, H), and that upstream stores one tensor per `layer`, each
with the axes on the right; a group in parentheses is one fused axis. Sizes of axis names come from a dict.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping

Sizes = Mapping[str, int]

_SLOT = re.compile(r"\{(\w+)(?:\+(\d+)|:([\d,]+))?\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
      paths: our path, or several of one shape, stacked along a new first axis (named by its size).
      name: upstream name; `{axis}` is an index along that axis, `{axis+1}` the index plus one, and
        `{axis:0,4,8}` the number in its place.
      axes: "ours -> upstream", or one side if both are the same. A number is an axis of that size.
      copies: (axis, size) of slots in the name that our leaf lacks: the tensor is written once for each
        index, and all copies must be equal when they are read.
    """

    paths: str | tuple[str, ...]
    name: str
    axes: str
    copies: tuple[tuple[str, int], ...] = ()

    @property
    def leaves(self) -> tuple[str, ...]:
        """Our paths as a tuple."""
        return (self.paths,) if isinstance(self.paths, str) else self.paths

    @property
    def stacked(self) -> bool:
        """Whether several leaves share one tensor."""
        return not isinstance(self.paths, str)


@dataclasses.dataclass(frozen=True)
class RuleLayout:
    """A rule with its axes resolved to numbers."""

    rule: Rule
    leaf_shape: tuple[int, ...]  # shape of the (stacked) leaf
    order: tuple[int, ...]  # permutation of our axes: slots first, then upstream's order
    groups: tuple[tuple[int, ...], ...]  # sizes of our axes within each axis of upstream's
    slots: tuple[tuple[str, int], ...]  # (axis, size) of the name's indices, copies last

    @property
    def upstream_shape(self) -> tuple[int, ...]:
        """Shape of one upstream tensor."""
        return tuple(math.prod(group) for group in self.groups)

    def names(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields (upstream name, index into the permuted leaf); copies share an index."""
        axes = [axis for axis, _ in self.slots]
        for values in itertools.product(*(range(size) for _, size in self.slots)):
            number = functools.partial(_number, dict(zip(axes, values, strict=True)))
            yield _SLOT.sub(number, self.rule.name), values[: len(axes) - len(self.rule.copies)]


def resolve(rule: Rule, sizes: Sizes) -> RuleLayout:
    """Looks the axes up in {axis name: size}."""
    left, _, right = rule.axes.partition("->")
    ours = left.split()
    groups = [g.strip("()").split() for g in re.findall(r"\([^)]*\)|\S+", right or left)]
    copied = dict(rule.copies)
    slots = [m[1] for m in _SLOT.finditer(rule.name) if m[1] not in copied]
    if not right:
        groups = [group for group in groups if group[0] not in slots]
    used = [axis for part in [ours, *groups] for axis in part]
    size = {axis: int(axis) if axis.isdigit() else sizes[axis] for axis in used}
    upstream = [axis for group in groups for axis in group if axis in ours]
    # Axes of size 1 may exist on one side only; they carry no data.
    dropped = [axis for axis in ours if axis == "1" and axis not in upstream]
    order = tuple(ours.index(axis) for axis in (*slots, *dropped, *upstream))
    assert sorted(order) == list(range(len(ours))), f"{rule.name}: axes {rule.axes!r} do not match"
    return RuleLayout(
        rule,
        leaf_shape=tuple(size[axis] for axis in ours),
        order=order,
        groups=tuple(tuple(size[a] for a in group if a in ours) for group in groups),
        slots=tuple((axis, size[axis]) for axis in slots) + rule.copies,
    )


def _number(index: Mapping[str, int], slot: re.Match[str]) -> str:
    """Returns what a slot of a name says at an index."""
    at = index[slot[1]]
    return slot[3].split(",")[at] if slot[3] else str(at + int(slot[2] or 0))
