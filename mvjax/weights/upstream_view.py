"""Upstream views: tensors of a file, computed one at a time from our leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mvjax.weights import layout as layout_lib
from mvjax.weights import lazy


@dataclasses.dataclass(frozen=True, eq=False)
class UpstreamView:
    """One tensor of upstream's as a view of our leaves; permuted each time that it is read.

    Attributes:
      rule: of the table.
      layout: of the rule, with sizes.
      slots: the indices in its name.
      leaves: those of the rule.
    """

    rule: layout_lib.Rule
    layout: layout_lib.RuleLayout
    slots: tuple[int, ...]
    leaves: Sequence[lazy.LazyTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of upstream's tensor."""
        return self.layout.upstream_shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype that holds the values of all leaves."""
        return lazy.common_dtype([np.dtype(leaf.dtype) for leaf in self.leaves])

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        """Returns the part that slices select, in C order; the whole tensor is computed for it."""
        layout = self.layout
        bounds = [(0, size) for size in layout.leaf_shape]
        for axis, at in zip(layout.order, self.slots):
            bounds[axis] = (at, at + 1)
        if self.rule.stacked:
            (low, high), *rest = bounds
            parts = [np.asarray(leaf[lazy.slices(rest)]) for leaf in self.leaves[low:high]]
            ours = np.stack([part.astype(self.dtype, copy=False) for part in parts])
        else:
            ours = np.asarray(self.leaves[0][lazy.slices(bounds)])
        whole = np.ascontiguousarray(ours.transpose(layout.order)).reshape(self.shape)
        return whole[lazy.slices(lazy.box(index, self.shape))]
