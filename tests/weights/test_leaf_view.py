"""A part of a leaf equals the part of the whole, and asks upstream's tensors for no more than it needs."""

import itertools
import random

import ml_dtypes
import numpy as np
import pytest
import recorded

from mvjax.weights import lazy, rules

SIZES = {"layer": 2, "D": 5, "N": 3, "H": 4, "step": 3}
TABLE = [
    rules.Rule("qkv", "l.{layer}.w", "layer D 3 N H -> (3 N H) D"),
    rules.Rule("steps", "s.{layer}.w", "layer step N H D -> (step D) (N H)"),
    rules.Rule(("q", "k"), "fused", "2 D N H -> (2 N H) D"),
    rules.Rule("norm", "s.{step}.l.{layer}.alpha", "layer D -> 1 1 D", (("step", 3),)),
    rules.Rule("alpha", "alpha", " -> 1 1 1"),
    rules.Rule("alphas", "l.{layer}.alpha", "layer -> 1 1 1"),
    rules.Rule("pos", "pos", "1 N D -> N D"),
]


def boxes(shape):
    """The whole, then a sample of the boxes whose sides are: all, first, middle or last part."""
    yield tuple((0, n) for n in shape)
    each = [
        sorted({(0, n), (0, max(1, n // 2)), (n // 2, n), (n - 1, n), (n // 2, n // 2 + 1)})
        for n in shape
    ]
    every = list(itertools.product(*each))
    yield from random.Random(0).sample(every, min(100, len(every)))


@pytest.mark.parametrize("path", rules.leaf_shapes(TABLE, SIZES))
def test_every_box_of_every_leaf(path):
    flat, tensors = recorded.make(TABLE, SIZES)
    leaf = rules.leaf_views(tensors, TABLE, SIZES, place="x")[path]
    assert leaf.shape == flat[path].shape
    copies = 3 if path == "norm" else 1
    for box in boxes(leaf.shape):
        for tensor in tensors.values():
            tensor.read = 0
        index = lazy.slices(box)
        part = leaf[index]
        np.testing.assert_array_equal(part, flat[path][index], err_msg=str(box))
        assert sum(tensor.read for tensor in tensors.values()) == copies * part.size, box


def test_nothing_is_read_before_it_is_asked_for():
    _, tensors = recorded.make(TABLE, SIZES)
    views = rules.leaf_views(tensors, TABLE, SIZES, place="x")
    assert {p: leaf.shape for p, leaf in views.items()} == rules.leaf_shapes(TABLE, SIZES)
    assert not any(tensor.read for tensor in tensors.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_name_the_tensor(dtype, value):
    flat, tensors = recorded.make(TABLE, SIZES, dtype)
    tensors["l.1.w"].values[7, 2] = value
    leaf = rules.leaf_views(tensors, TABLE, SIZES, place="a.safetensors")["qkv"]
    whole = slice(None)
    np.testing.assert_array_equal(leaf[(whole, slice(3, 5))], flat["qkv"][:, 3:5].astype("f"))
    with pytest.raises(ValueError, match=r"a\.safetensors: 1 .*\n  l\.1\.w: .*got 1 NaN or inf"):
        leaf[(whole, slice(0, 3))]


def test_the_largest_numbers_are_numbers():
    _, tensors = recorded.make(TABLE, SIZES, ml_dtypes.bfloat16)
    tensors["pos"].values[:] = ml_dtypes.finfo(ml_dtypes.bfloat16).max
    tensors["pos"].values[1] = ml_dtypes.finfo(ml_dtypes.bfloat16).min
    assert np.isfinite(rules.leaf_views(tensors, TABLE, SIZES, place="x")["pos"][()]).all()


def test_all_damaged_tensors_of_a_file_are_listed():
    _, tensors = recorded.make(TABLE, SIZES)
    for name in ("s.1.w", "pos"):
        tensors[name].values[0] = np.nan
    with pytest.raises(ValueError, match=r"x: 2 tensors are damaged(.|\n)*s\.1\.w(.|\n)*pos"):
        rules.from_upstream(tensors, TABLE, SIZES, place="x")


def test_joined_and_parts_read_only_the_rows_asked_for():
    values = np.arange(60, dtype=np.float32).reshape(10, 6)
    parts = [recorded.Recorded(part) for part in np.split(values, [2, 3, 7])]
    joined = lazy.concatenated(parts)
    assert joined.shape == (10, 6)
    for low, high in itertools.combinations(range(11), 2):
        np.testing.assert_array_equal(
            joined[(slice(low, high), slice(1, 4))], values[low:high, 1:4]
        )
    parts[0].read = parts[3].read = 0
    joined[(slice(2, 7),)]
    assert parts[0].read == parts[3].read == 0
    third = lazy.row_block(joined, 2, 5)
    assert third.shape == (2, 6)
    np.testing.assert_array_equal(third[(slice(1, 2),)], values[5:6])


def test_slices_become_bounds():
    assert lazy.box((slice(1, None),), (4, 5)) == ((1, 4), (0, 5))
    assert lazy.box((slice(None), slice(-2, 9)), (4, 5)) == ((0, 4), (3, 5))
    assert lazy.box((), (4, 5)) == ((0, 4), (0, 5))
