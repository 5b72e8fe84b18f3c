"""A file format as a table of rules, used both ways: {our path: leaf} <-> {upstream name: tensor}.

To add a format, write a module with a function that returns its table (list[Rule]) and one that returns the
size of each axis name, as `kyutai.py` and `siglip_names.py` do; `layout.py` says what a rule can express.
Then

    rules.leaf_views(safetensors_io.tensors(path), table, sizes, place=str(path))      # reads
    safetensors_io.write(path, rules.upstream_views(leaves, table, sizes, place=...))  # writes

Every name and shape is checked against the table; the error lists all that are missing, unexpected or
misshapen.
A format of an export also needs a row in `file_names.py` and a case in `export/weight_files.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mvjax.weights import layout, lazy, leaf_view, placement, upstream_view

Rule = layout.Rule
Sizes = layout.Sizes
Tensors = dict[str, np.ndarray]


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
    for rule in rules:
        resolved = layout.resolve(rule, sizes)
        for name, _ in layout.names(rule, resolved):
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
    """Returns {upstream name: upstream view} for {our path: leaf}; each is computed when it is read.

    Args:
      flat: exactly the paths of the table, on the host or on devices.
      rules: the format.
      sizes: {axis name: size}.
      place: for messages.
      dtype: of the tensors; None keeps that of the leaves.

    Raises:
      ValueError: naming the place and every missing, unexpected or misshapen path.
    """
    _check(leaf_shapes(rules, sizes), flat, place=place, kind="parameters")
    tensors: dict[str, lazy.LazyTensor] = {}
    for rule in rules:
        resolved = layout.resolve(rule, sizes)
        values = tuple(placement.on_host(flat[path]) for path in rule.leaves)
        for name, slots in layout.names(rule, resolved):
            assert name not in tensors, f"two rules produce {name}"
            tensors[name] = lazy.cast(
                upstream_view.UpstreamView(rule, resolved, slots, values), dtype
            )
    return tensors


def from_upstream(
    tensors: Mapping[str, lazy.LazyTensor],
    rules: Sequence[Rule],
    sizes: Sizes,
    *,
    place: str,
    dtype: np.dtype | type | None = np.float32,
) -> dict[str, np.ndarray]:
    """Returns {our path: leaf}, read whole; otherwise as `leaf_views`.

    Raises:
      ValueError: also naming every tensor with damaged values or an unequal copy.
    """
    return read_leaves(leaf_views(tensors, rules, sizes, place=place, dtype=dtype), place=place)


def read_leaves(views: Mapping[str, leaf_view.LeafView], *, place: str) -> dict[str, np.ndarray]:
    """Returns {our path: values}, each read whole; the memory order is the file's, the axes are ours.

    Raises:
      ValueError: naming the place and every tensor with damaged values or an unequal copy.
    """
    flat: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for path, view in views.items():
        values, damage = view.read(())
        flat[path] = values
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

    Args:
      tensors: exactly the names of the table, in any float dtype.
      rules: the format.
      sizes: {axis name: size}.
      place: the file, for messages.
      dtype: of the leaves; None keeps that of the file.

    Raises:
      ValueError: naming the place, and every missing, unexpected or misshapen name.
    """
    _check(tensor_shapes(rules, sizes), tensors, place=place, kind="tensors")
    views: dict[str, leaf_view.LeafView] = {}
    for rule in rules:
        resolved = layout.resolve(rule, sizes)
        named = {name: tensors[name] for name, _ in layout.names(rule, resolved)}
        kept = lazy.common_dtype([tensor.dtype for tensor in named.values()])
        kept = kept if dtype is None else np.dtype(dtype)
        for row, path in enumerate(rule.leaves):
            assert path not in views, f"two rules produce {path}"
            views[path] = leaf_view.LeafView(rule, resolved, row, named, kept, place)
    return views


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
    for name, shape in expected.items():
        if name not in given:
            continue
        got = tuple(given[name].shape)
        if got != shape:
            problems.append(
                f"{name}: expected {list(shape)}, got {list(got)}{_origin(given[name], place)}"
            )
        elif kind == "tensors" and not lazy.is_float(given[name].dtype):
            problems.append(
                f"{name}: expected floating point numbers, got {given[name].dtype}"
                f"{_origin(given[name], place)}"
            )
    if problems:
        raise ValueError(
            f"{place}: {len(problems)} of {len(expected)} {kind} do not fit the config:\n  "
            + "\n  ".join(problems)
            + "\nCheck that the sizes in the model config are those of this file."
        )


def _origin(tensor: lazy.LazyTensor, place: str) -> str:
    """Names the file of a tensor where it is not the place itself."""
    file = getattr(tensor, "file", None)
    return f" (in {file})" if file is not None and str(file) != place else ""
