"""A parameter is a path such as `backbone/blocks/gate/up/kernel`: flatten, split, merge, compare.

Regexes over paths match the whole path; one that matches nothing is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mvjax import messages

Tree = Mapping[str, Any]
Flat = dict[str, Any]


def flatten(tree: Tree, prefix: str = "") -> Flat:
    """Returns {path: leaf} in sorted order; leaves are all values that are not mappings."""
    flat: Flat = {}
    for key in sorted(tree):
        path = f"{prefix}{key}"
        value = tree[key]
        flat.update(flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def merge(*trees: Tree) -> dict[str, Any]:
    """Unites trees with disjoint paths.

    Raises:
      ValueError: listing every path that two trees hold.
    """
    flat: Flat = {}
    twice = []
    for tree in trees:
        leaves = flatten(tree)
        twice += [path for path in leaves if path in flat]
        flat.update(leaves)
    if twice:
        raise ValueError(f"merge: each path must be in one tree only, got in two: {twice}")
    return unflatten(flat)


def partition(tree: Tree, patterns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a tree into (paths that match any pattern, the rest)."""
    flat = flatten(tree)
    matched = {p: v for p, v in flat.items() if any(re.fullmatch(r, p) for r in patterns)}
    unused = [r for r in patterns if not any(re.fullmatch(r, p) for p in flat)]
    if unused:
        raise ValueError(
            f"patterns that match no parameter: {messages.names(unused)}; parameters:"
            f" {messages.names(sorted(flat))}"
        )
    return unflatten(matched), unflatten({p: v for p, v in flat.items() if p not in matched})


def assert_same_tree(expected: Tree, actual: Tree, *, place: str) -> None:
    """Checks paths, shapes and dtypes of arrays (or shape structs).

    Raises:
      ValueError: naming the place and every missing, unexpected or differing path.
    """
    want, have = flatten(expected), flatten(actual)
    problems = [f"{p}: missing" for p in want if p not in have]
    problems += [f"{p}: unexpected" for p in have if p not in want]
    for path in want:
        if path in have:
            a, b = _describe(want[path]), _describe(have[path])
            if a != b:
                problems.append(f"{path}: expected {a}, got {b}")
    differing = messages.counted(len(problems), "parameter differs", "parameters differ")
    refuse(problems, f"{place}: {differing}")


def refuse(problems: Sequence[str], message: str, *, remedy: str = "") -> None:
    """Raises ValueError if there are problems: the message, their list (capped), and the remedy as it is."""
    if problems:
        raise ValueError(f"{message}:{messages.lines(problems)}{remedy}")


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
