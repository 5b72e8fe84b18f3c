"""A file format as a table of rules, used both ways: {our path: leaf} <-> {upstream name: tensor}.

    rules.leaf_views(safetensors_io.tensors(path), table, sizes, place=str(path))      # reads
    safetensors_io.write(path, rules.upstream_views(leaves, table, sizes, place=...))  # writes

`layout.py` says what a rule can express; `sizes` has the size of each axis name. Every name and shape is
checked against the table; the error lists all that are missing, unexpected or misshapen. A format of an
export also needs a row in `file_names.py` and a case in `export/weight_files.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mvjax import tree
from mvjax.weights import layout, lazy, leaf_view, placement

Rule = layout.Rule
Sizes = layout.Sizes
Tensors = dict[str, np.ndarray]


def table(rows: Iterable[tuple], *, ours: str = "", upstream: str = "") -> list[Rule]:
    """Returns the rules of rows (path, name, axes[, copies]) behind prefixes of path and name."""
    return [Rule(ours + path, upstream + name, axes, *copies) for path, name, axes, *copies in rows]


def renamed(name: str, replacements: Iterable[tuple[str, str]]) -> str:
    """Returns a name after the first of the (regex of its beginning, replacement) that fits it."""
    for pattern, replacement in replacements:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return name


def leaf_shapes(rules: Sequence[Rule], sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns {our path: shape} of every leaf in the table."""
    shapes = {}
    for rule in rules:
        shape = layout.resolve(rule, sizes).leaf_shape
        for path in rule.leaves:
            assert path not in shapes, f"two rules produce {path}"
            shapes[path] = shape[1:] if rule.stacked else shape
    return shapes


def tensor_shapes(rules: Sequence[Rule], sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns {upstream name: shape} of every tensor in the table."""
    shapes = {}
    for resolved in (layout.resolve(rule, sizes) for rule in rules):
        for name, _ in resolved.names():
            assert name not in shapes, f"two rules produce {name}"
            shapes[name] = resolved.upstream_shape
    return shapes


def upstream_views(
    flat: Mapping[str, lazy.LazyTensor],
    rules: Sequence[Rule],
    sizes: Sizes,
    *,
    place: str,
    dtype: np.dtype | type | None = None,
) -> dict[str, lazy.LazyTensor]:
    """Returns {upstream name: tensor} for {our path: leaf}; each is computed when it is read.

    Leaves are on the host or on devices. Without a dtype a tensor has that of its leaves, or one that holds
    the values of all.

    Raises:
      ValueError: naming the place and every missing, unexpected or misshapen path.
    """
    _check(leaf_shapes(rules, sizes), flat, place=place, kind="parameters")
    tensors: dict[str, lazy.LazyTensor] = {}
    for resolved in (layout.resolve(rule, sizes) for rule in rules):
        leaves = [placement.on_host(flat[path]) for path in resolved.rule.leaves]
        kept = lazy.common_dtype([np.dtype(leaf.dtype) for leaf in leaves])
        for name, slots in resolved.names():
            assert name not in tensors, f"two rules produce {name}"
            read = functools.partial(_upstream_part, resolved, slots, leaves, kept)
            tensors[name] = lazy.cast(lazy.Computed(resolved.upstream_shape, kept, read), dtype)
    return tensors


def from_upstream(
    tensors: Mapping[str, lazy.LazyTensor],
    rules: Sequence[Rule],
    sizes: Sizes,
    *,
    place: str,
    dtype: np.dtype | type | None = np.float32,
) -> dict[str, np.ndarray]:
    """Returns {our path: leaf}, as `leaf_views`, each read whole, as `read_leaves`."""
    return read_leaves(leaf_views(tensors, rules, sizes, place=place, dtype=dtype), place=place)


def read_leaves(views: Mapping[str, leaf_view.LeafView], *, place: str) -> dict[str, np.ndarray]:
    """Returns {our path: values}, each read whole; the memory order is the file's, the axes are ours.

    Raises:
      ValueError: naming the place and every tensor with damaged values or an unequal copy.
    """
    flat: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for path, view in views.items():
        flat[path], damage = view.read(())
        problems += damage
    leaf_view.refuse_damage(problems, place)
    return flat


def leaf_views(
    tensors: Mapping[str, lazy.LazyTensor],
    rules: Sequence[Rule],
    sizes: Sizes,
    *,
    place: str,
    dtype: np.dtype | type | None = np.float32,
) -> dict[str, leaf_view.LeafView]:
    """Returns {our path: leaf view} for {upstream name: tensor}; nothing is read before it is indexed.

    Tensors have any float dtype; `dtype` is that of the leaves, None keeps that of the file.

    Raises:
      ValueError: naming the place (the file), and every missing, unexpected or misshapen name.
    """
    _check(tensor_shapes(rules, sizes), tensors, place=place, kind="tensors")
    views: dict[str, leaf_view.LeafView] = {}
    for resolved in (layout.resolve(rule, sizes) for rule in rules):
        named = {name: tensors[name] for name, _ in resolved.names()}
        kept = lazy.common_dtype([tensor.dtype for tensor in named.values()])
        kept = kept if dtype is None else np.dtype(dtype)
        for row, path in enumerate(resolved.rule.leaves):
            assert path not in views, f"two rules produce {path}"
            views[path] = leaf_view.LeafView(resolved, row, named, kept, place)
    return views


def _upstream_part(
    resolved: layout.RuleLayout,
    slots: tuple[int, ...],
    leaves: Sequence[lazy.LazyTensor],
    dtype: np.dtype,
    part: lazy.Index,
) -> np.ndarray:
    """Returns a part of the tensor with these slots, in C order; the whole is permuted for it."""
    bounds = [(0, size) for size in resolved.leaf_shape]
    for axis, at in zip(resolved.order, slots):
        bounds[axis] = (at, at + 1)
    if resolved.rule.stacked:
        (low, high), *rest = bounds
        parts = [np.asarray(leaf[lazy.slices(rest)]) for leaf in leaves[low:high]]
        ours = np.stack([part.astype(dtype, copy=False) for part in parts])
    else:
        ours = np.asarray(leaves[0][lazy.slices(bounds)])
    whole = lazy.in_c_order(ours.transpose(resolved.order))
    return whole.reshape(resolved.upstream_shape)[part]


def _check(
    expected: Mapping[str, tuple[int, ...]],
    given: Mapping[str, lazy.LazyTensor],
    *,
    place: str,
    kind: str,
) -> None:
    problems = [f"{n}: missing, expected {list(s)}" for n, s in expected.items() if n not in given]
    problems += [
        f"{n}: unexpected{_origin(given[n], place)}" for n in sorted(given) if n not in expected
    ]
    for name, tensor in ((name, given[name]) for name in expected if name in given):
        want, got = list(expected[name]), list(tensor.shape)
        if got != want:
            problems.append(f"{name}: expected {want}, got {got}{_origin(tensor, place)}")
        elif kind == "tensors" and not lazy.is_float(tensor.dtype):
            fact = f"expected floating point numbers, got {tensor.dtype}"
            problems.append(f"{name}: {fact}{_origin(tensor, place)}")
    tree.refuse(
        problems,
        f"{place}: {len(problems)} of {len(expected)} {kind} do not fit the config",
        remedy="\nCheck that the sizes in the model config are those of this file.",
    )


def _origin(tensor: lazy.LazyTensor, place: str) -> str:
    """Names the file of a tensor where it is not the place itself."""
    file = getattr(tensor, "file", None)
    return f" (in {file})" if file is not None and str(file) != place else ""
