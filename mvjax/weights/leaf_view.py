"""Leaf views: our leaves, computed from upstream's tensors; a part of a leaf reads parts of tensors only."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mvjax import messages, tree
from mvjax.weights import layout as layout_lib
from mvjax.weights import lazy

Run = tuple[lazy.Index, lazy.Index]  # slices of a tensor, and of the box that they fill


@dataclasses.dataclass(frozen=True, eq=False)
class LeafView:
    """One of our leaves as a view of upstream's tensors."""

    layout: layout_lib.RuleLayout
    row: int  # index among the rule's paths
    tensors: Mapping[str, lazy.LazyTensor]  # those of the rule, by upstream name
    dtype: np.dtype  # that values are converted to
    place: str  # the file, for messages

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of our leaf."""
        return self.layout.leaf_shape[1:] if self.layout.rule.stacked else self.layout.leaf_shape

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
        layout, stacked, problems = self.layout, self.layout.rule.stacked, []
        box = lazy.box(index, self.shape)
        box = ((self.row, self.row + 1), *box) if stacked else box
        permuted = [box[axis] for axis in layout.order]
        # In upstream's order, so that values are copied in runs; what transposes is the view below.
        values = np.empty([high - low for low, high in permuted], self.dtype)
        owned = len(layout.order) - sum(map(len, layout.groups))  # axes that one tensor lacks
        runs = list(_runs(layout.groups, permuted[owned:]))
        filled: dict[tuple[int, ...], str] = {}
        for name, slots in layout.names():
            bounds = permuted[: len(slots)]
            if not all(low <= at < high for at, (low, high) in zip(slots, bounds)):
                continue
            at = [k - low for k, (low, _) in zip(slots, bounds)]
            at += [0] * (owned - len(slots))  # axes of size 1 that upstream has not
            part, tensor = values[(*at, ...)], self.tensors[name]
            if slots not in filled:
                filled[slots] = name
                if damaged := _fill(part, tensor, runs):
                    problems.append(f"{name}: expected numbers, got {damaged} NaN or infinite")
            elif not all(
                np.array_equal(part[ours].ravel(), tensor[upstream].ravel().astype(part.dtype))
                for upstream, ours in runs
            ):
                problems.append(f"{name}: expected a copy of {filled[slots]}, got other values")
        leaf = values.transpose(np.argsort(layout.order))
        return (leaf[0] if stacked else leaf), problems


def refuse_damage(problems: Sequence[str], place: str) -> None:
    """Raises ValueError if there are problems, listing them."""
    fact = f"{place}: {messages.counted(len(problems), 'tensor is', 'tensors are')} damaged"
    tree.refuse(problems, fact, remedy="\nFetch or make the file again.")


def _fill(part: np.ndarray, tensor: lazy.LazyTensor, runs: Sequence[Run]) -> int:
    """Copies values of a tensor to their places; returns how many are no numbers."""
    damaged = 0
    for upstream, ours in runs:
        piece = np.asarray(tensor[upstream])
        damaged += _count_not_finite(piece)
        target = part[(*ours, ...)]
        target[...] = piece.reshape(target.shape)
    return damaged


def _runs(groups: Sequence[Sequence[int]], bounds: Sequence[tuple[int, int]]) -> Iterator[Run]:
    """Yields (slices of upstream's tensor, slices of the box) that together make up the box.

    A box over the parts of a fused axis is no single slice of it: heads 2 to 4 of (3 N H) are three.
    """
    each, start = [], 0
    for group in groups:
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
    cut = max((k for k, n in enumerate(group) if bounds[k] != (0, n)), default=0)
    inner = math.prod(group[cut + 1 :])
    low, high = bounds[cut]
    tail = (slice(0, high - low), *(slice(0, size) for size in group[cut + 1 :]))
    for outer in itertools.product(*(range(*bound) for bound in bounds[:cut])):
        first = int(np.ravel_multi_index((*outer, 0), group[: cut + 1]))
        head = [slice(at - start, at - start + 1) for at, (start, _) in zip(outer, bounds)]
        yield slice((first + low) * inner, (first + high) * inner), (*head, *tail)


def _count_not_finite(values: np.ndarray) -> int:
    bits = {2: np.uint16, 4: np.uint32}.get(values.dtype.itemsize)
    if bits is not None and values.size:  # many times faster than isfinite on bfloat16
        infinity = np.array(np.inf, values.dtype).view(bits) << 1
        if np.left_shift(values.view(bits), 1).max() < infinity:
            return 0
    return int(values.size - np.count_nonzero(np.isfinite(values)))
