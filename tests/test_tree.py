import jax
import numpy as np
import pytest

from mvjax import tree

NESTED = {"b": {"x": 1, "a": {"kernel": 2}}, "a": 3}
FLAT = {"a": 3, "b/a/kernel": 2, "b/x": 1}


def test_flatten_is_sorted_and_unflatten_is_its_inverse():
    assert list(tree.flatten(NESTED).items()) == list(FLAT.items())
    assert tree.unflatten(FLAT) == NESTED


def test_merge_unites_disjoint_paths():
    first, second = {"a": {"x": 1}}, {"a": {"y": 2}, "b": 3}
    assert tree.merge(first, second) == {"a": {"x": 1, "y": 2}, "b": 3}


def test_merge_names_every_path_that_is_in_two_trees():
    with pytest.raises(ValueError, match=r"\['a/x', 'b'\]"):
        tree.merge({"a": {"x": 1}, "b": 2}, {"a": {"x": 1, "y": 3}, "b": 2})


def test_partition_is_disjoint_and_whole():
    chosen, rest = tree.partition(NESTED, [r"b/a/.*", "a"])
    assert tree.flatten(chosen) == {"a": 3, "b/a/kernel": 2}
    assert tree.flatten(rest) == {"b/x": 1}
    assert tree.merge(chosen, rest) == NESTED


def test_partition_names_patterns_that_match_nothing():
    with pytest.raises(ValueError, match="no parameter: b; .*b/a/kernel"):
        tree.partition(NESTED, ["a", "b"])


def test_same_tree_compares_paths_shapes_and_dtypes():
    expected = {"a": np.zeros((2, 3)), "b": {"c": np.zeros(4), "d": np.zeros(5)}}
    tree.assert_same_tree(expected, jax.tree.map(np.ones_like, expected), place="here")
    actual = {"a": np.zeros((3, 2)), "b": {"c": np.zeros(4, np.float32), "e": np.zeros(5)}}
    with pytest.raises(ValueError) as error:
        tree.assert_same_tree(expected, actual, place="x.npz")
    assert str(error.value).splitlines() == [
        "x.npz: 4 parameters differ:",
        "  b/d: missing",
        "  b/e: unexpected",
        "  a: expected float64[2, 3], got float64[3, 2]",
        "  b/c: expected float64[4], got float32[4]",
    ]
