"""Leaf views: our leaves, computed from upstream's tensors; a part of a leaf reads parts of tensors only."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mvjax.weights import layout as layout_lib
from mvjax.weights import lazy


@dataclasses.dataclass(frozen=True, eq=False)
class LeafView:
    """One of our leaves as a view of upstream's tensors.

    Attributes:
      rule: of the table.
      layout: of the rule, with sizes.
      row: index among the rule's paths.
      tensors: those of the rule, by upstream name.
      dtype: that values are converted to.
      place: the file, for messages.
    """

    rule: layout_lib.Rule
    layout: layout_lib.RuleLayout
    row: int
    tensors: Mapping[str, lazy.LazyTensor]
    dtype: np.dtype
    place: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of our leaf."""
        return self.layout.leaf_shape[1:] if self.rule.stacked else self.layout.leaf_shape

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        """Returns the part that slices select; it need not be in C order.

        Raises:
          ValueError: naming the file and each tensor with damaged values or an unequal copy.
        """
        values, problems = self.read(index)
        refuse_damage(problems, self.place)
        return values

    def read(self, index: lazy.Index) -> tuple[np.ndarray, list[str]]:
        """Returns a part, and a line for each tensor whose values cannot be right."""
        layout, problems = self.layout, []
        box = lazy.box(index, self.shape)
        box = ((self.row, self.row + 1), *box) if self.rule.stacked else box
        permuted = [box[axis] for axis in layout.order]
        # In upstream's order, so that values are copied in runs; what transposes is the view below.
        values = np.empty([high - low for low, high in permuted], self.dtype)
        owned = len(layout.order) - layout.n_inside
        filled: dict[tuple[int, ...], str] = {}
        for name, slots in layout_lib.names(self.rule, layout):
            bounds = permuted[: len(slots)]
            if not all(low <= at < high for at, (low, high) in zip(slots, bounds)):
                continue
            at = [k - low for k, (low, _) in zip(slots, bounds)]
            at += [0] * (owned - len(slots))  # axes of size 1 that upstream has not
            part = values[(*at, ...)]
            if slots not in filled:
                problems += _fill(part, name, self.tensors[name], layout, permuted[owned:])
                filled[slots] = name
            elif not _equal(part, self.tensors[name], layout, permuted[owned:]):
                problems.append(f"{name}: expected a copy of {filled[slots]}, got other values")
        leaf = values.transpose(np.argsort(layout.order))
        return (leaf[0] if self.rule.stacked else leaf), problems


def refuse_damage(problems: Sequence[str], place: str) -> None:
    """Raises ValueError if there are problems, listing them."""
    if problems:
        raise ValueError(
            f"{place}: {len(problems)} tensors are damaged:\n  "
            + "\n  ".join(problems)
            + "\nFetch or make the file again."
        )


def _fill(
    part: np.ndarray,
    name: str,
    tensor: lazy.LazyTensor,
    layout: layout_lib.RuleLayout,
    bounds: Sequence[tuple[int, int]],
) -> list[str]:
    """Copies the values within bounds of our axes; returns what is wrong with them."""
    damaged = 0
    for upstream, ours in _runs(layout, bounds):
        piece = np.asarray(tensor[upstream])
        damaged += _count_not_finite(piece)
        target = part[(*ours, ...)]
        target[...] = piece.reshape(target.shape)
    return [f"{name}: expected numbers, got {damaged} NaN or infinite"] if damaged else []


def _equal(
    part: np.ndarray,
    tensor: lazy.LazyTensor,
    layout: layout_lib.RuleLayout,
    bounds: Sequence[tuple[int, int]],
) -> bool:
    return all(
        np.array_equal(
            part[(*ours, ...)].reshape(-1), tensor[upstream].reshape(-1).astype(part.dtype)
        )
        for upstream, ours in _runs(layout, bounds)
    )


def _runs(
    layout: layout_lib.RuleLayout, bounds: Sequence[tuple[int, int]]
) -> Iterator[tuple[lazy.Index, lazy.Index]]:
    """Yields (slices of upstream's tensor, slices of the box) that together make up the box.

    A box over the parts of a fused axis is no single slice of it: heads 2 to 4 of (3 N H) are three.
    """
    each, start = [], 0
    for group in layout.groups:
        each.append(list(_fused_runs(group, bounds[start : start + len(group)])))
        start += len(group)
    for runs in itertools.product(*each):
        yield tuple(run for run, _ in runs), tuple(part for _, parts in runs for part in parts)


def _fused_runs(
    group: Sequence[int], bounds: Sequence[tuple[int, int]]
) -> Iterator[tuple[slice, lazy.Index]]:
    """Yields (slice of the fused axis, slices of the box over its parts)."""
    if not group:
        yield slice(0, 1), ()
        return
    whole = [bound == (0, size) for size, bound in zip(group, bounds)]
    cut = max((k for k in range(len(group)) if not whole[k]), default=0)
    inner = math.prod(group[cut + 1 :])
    low, high = bounds[cut]
    tail = (slice(0, high - low), *(slice(0, size) for size in group[cut + 1 :]))
    for outer in itertools.product(*(range(*bound) for bound in bounds[:cut])):
        first = 0
        for at, size in zip(outer, group):
            first = first * size + at
        first *= group[cut]
        head = [slice(at - start, at - start + 1) for at, (start, _) in zip(outer, bounds)]
        yield slice((first + low) * inner, (first + high) * inner), (*head, *tail)


def _count_not_finite(values: np.ndarray) -> int:
    bits = {2: np.uint16, 4: np.uint32}.get(values.dtype.itemsize)
    if bits is not None and values.size:  # many times faster than isfinite on bfloat16
        infinity = np.array(np.inf, values.dtype).view(bits) << 1
        if np.left_shift(values.view(bits), 1).max() < infinity:
            return 0
    return int(values.size - np.count_nonzero(np.isfinite(values)))
