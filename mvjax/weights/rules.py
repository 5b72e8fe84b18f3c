"""A file format as an ordered table of rules, applied both ways: our paths, upstream names.

A rule such as

    Rule("blocks/attn/qkv/kernel", "layers.{layer}.in_proj_weight", "layer D 3 N H -> (3 N H) D")

reads: our leaf has axes (layer, D, 3, N, H); upstream stores one tensor per `layer`, each with the
axes on the right, where a group in parentheses is one fused axis.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Sizes = Mapping[str, int]
Tensors = dict[str, np.ndarray]

_SLOT = re.compile(r"\{(\w+)(\+\d+)?\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One correspondence; see the module docstring.

    Attributes:
      paths: our path, or several of one shape, stacked along a new first axis (named by its size).
      name: upstream name; `{axis}` is an index along that axis, `{axis+1}` the index plus one.
      axes: "ours -> upstream", or one side if both are the same. A number is an axis of that size.
      copies: (axis, size) of name slots that our leaf lacks: written repeatedly, read if all agree.
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
class _Layout:
    """A rule with its axes resolved to numbers."""

    ours: tuple[int, ...]  # shape of the (stacked) leaf
    order: tuple[int, ...]  # permutation of our axes: slots first, then upstream's order
    permuted: tuple[int, ...]  # shape after the permutation
    theirs: tuple[int, ...]  # shape of one upstream tensor
    slots: tuple[tuple[str, int], ...]  # (axis, size) of the name's indices, copies last


def leaf_shapes(rules: Sequence[Rule], sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns {our path: shape} for every leaf the table covers."""
    shapes = {}
    for rule in rules:
        shape = _layout(rule, sizes).ours
        for path in rule.leaves:
            assert path not in shapes, f"two rules produce {path}"
            shapes[path] = shape[1:] if rule.stacked else shape
    return shapes


def tensor_shapes(rules: Sequence[Rule], sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns {upstream name: shape} for every tensor the table covers."""
    shapes = {}
    for rule in rules:
        layout = _layout(rule, sizes)
        for name, _ in _names(rule, layout):
            assert name not in shapes, f"two rules produce {name}"
            shapes[name] = layout.theirs
    return shapes


def to_upstream(
    flat: Mapping[str, np.ndarray], rules: Sequence[Rule], sizes: Sizes, *, place: str
) -> Tensors:
    """Returns {upstream name: tensor} for {our path: leaf}.

    Raises:
      ValueError: naming the place and every missing, unexpected or misshapen path.
    """
    _check(leaf_shapes(rules, sizes), flat, place=place, kind="parameters")
    tensors: Tensors = {}
    for rule in rules:
        layout = _layout(rule, sizes)
        leaves = [np.asarray(flat[path]) for path in rule.leaves]
        leaf = np.stack(leaves) if rule.stacked else leaves[0]
        permuted = leaf.reshape(layout.ours).transpose(layout.order)
        for name, index in _names(rule, layout):
            assert name not in tensors, f"two rules produce {name}"
            tensors[name] = np.ascontiguousarray(permuted[index]).reshape(layout.theirs)
    return tensors


def from_upstream(
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    sizes: Sizes,
    *,
    place: str,
    dtype: np.dtype | type | None = np.float32,
) -> dict[str, np.ndarray]:
    """Returns {our path: leaf} for {upstream name: tensor}.

    Args:
      tensors: exactly the names of the table, in any float dtype.
      rules: the format.
      sizes: {axis name: size}.
      place: the file, for messages.
      dtype: of the leaves; None keeps the dtype of the file.

    Raises:
      ValueError: naming the place, and every missing, unexpected or misshapen name or unequal copy.
    """
    _check(tensor_shapes(rules, sizes), tensors, place=place, kind="tensors")
    flat: dict[str, np.ndarray] = {}
    differing = []
    for rule in rules:
        layout = _layout(rule, sizes)
        names = list(_names(rule, layout))
        kept = np.dtype(dtype) if dtype is not None else tensors[names[0][0]].dtype
        permuted = np.empty(layout.permuted, kept)
        filled: dict[tuple[int, ...], str] = {}
        for name, index in names:
            value = tensors[name].reshape(permuted[index].shape).astype(kept)
            if index in filled and not np.array_equal(permuted[index], value, equal_nan=True):
                differing.append(f"{name}: expected a copy of {filled[index]}, got other values")
            filled.setdefault(index, name)
            permuted[index] = value
        leaf = np.ascontiguousarray(permuted.transpose(np.argsort(layout.order)))
        parts = list(leaf) if rule.stacked else [leaf.reshape(layout.ours)]
        flat.update(zip(rule.leaves, parts, strict=True))
    if differing:
        raise ValueError(f"{place}: {len(differing)} copies differ:\n  " + "\n  ".join(differing))
    return flat


def _check(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, np.ndarray],
    *,
    place: str,
    kind: str,
) -> None:
    problems = [f"{n}: missing, expected {list(s)}" for n, s in expected.items() if n not in found]
    problems += [f"{n}: unexpected" for n in sorted(found) if n not in expected]
    for name, shape in expected.items():
        if name in found and tuple(found[name].shape) != shape:
            got = list(found[name].shape)
            problems.append(f"{name}: expected {list(shape)}, got {got}")
    if problems:
        raise ValueError(
            f"{place}: {len(problems)} of {len(expected)} {kind} do not fit the config:\n  "
            + "\n  ".join(problems)
            + "\nCheck that the sizes in the model config are those of this file."
        )


def _names(rule: Rule, layout: _Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields (upstream name, index into the permuted leaf); copies share an index."""
    owned = len(layout.slots) - len(rule.copies)
    for values in itertools.product(*(range(size) for _, size in layout.slots)):
        index = dict(zip((axis for axis, _ in layout.slots), values, strict=True))

        def fill(match: re.Match[str], index: dict[str, int] = index) -> str:
            return str(index[match[1]] + int(match[2] or 0))

        yield _SLOT.sub(fill, rule.name), values[:owned]


def _layout(rule: Rule, sizes: Sizes) -> _Layout:
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
    order = [ours.index(axis) for axis in (*slots, *upstream)]
    # Axes of size 1 may exist on one side only; they carry no data.
    dropped = [k for k, axis in enumerate(ours) if axis == "1" and axis not in upstream]
    order = [*order[: len(slots)], *dropped, *order[len(slots) :]]
    assert sorted(order) == list(range(len(ours))), f"{rule.name}: axes {rule.axes!r} do not match"
    theirs = tuple(int(np.prod([size[axis] for axis in group])) for group in groups)
    return _Layout(
        ours=tuple(size[axis] for axis in ours),
        order=tuple(order),
        permuted=tuple(size[ours[k]] for k in order),
        theirs=theirs,
        slots=tuple((axis, size[axis]) for axis in slots) + rule.copies,
    )
