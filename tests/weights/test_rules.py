"""The rule engine, both ways."""

import as_written
import ml_dtypes
import numpy as np
import pytest

from mvjax.weights import rules

SIZES = {"layer": 2, "D": 5, "N": 3, "H": 4, "step": 3}
TABLE = [
    rules.Rule("qkv", "l.{layer}.w", "layer D 3 N H -> (3 N H) D"),
    rules.Rule(("q", "k"), "fused", "2 D N H -> (2 N H) D"),
    rules.Rule("norm", "s.{step}.l.{layer}.alpha", "layer D -> 1 1 D", (("step", 3),)),
    rules.Rule("emb", "e.{step+1}", "step D"),
    rules.Rule("alpha", "alpha", " -> 1 1 1"),
    rules.Rule("pos", "pos", "1 N D -> N D"),
    rules.Rule("some", "l.{step:1,4,10}.some", "step D"),
]


def leaves():
    rng = np.random.default_rng(0)
    shapes = rules.leaf_shapes(TABLE, SIZES)
    return {p: rng.standard_normal(s).astype(np.float32) for p, s in shapes.items()}


def read(tensors):
    return rules.from_upstream(tensors, TABLE, SIZES, place="a.safetensors")


def test_values_land_where_the_pattern_says():
    flat = leaves()
    tensors = as_written.tensors(flat, TABLE, SIZES)
    row = 1 * (3 * 4) + 2 * 4 + 3  # K part, head 2, channel 3
    np.testing.assert_array_equal(tensors["l.1.w"][row], flat["qkv"][1, :, 1, 2, 3])
    np.testing.assert_array_equal(tensors["fused"][3 * 4 + 4 + 2], flat["k"][:, 1, 2])
    np.testing.assert_array_equal(tensors["e.3"], flat["emb"][2])
    np.testing.assert_array_equal(tensors["s.2.l.1.alpha"][0, 0], flat["norm"][1])
    assert tensors["alpha"].shape == (1, 1, 1)
    assert "e.0" not in tensors
    np.testing.assert_array_equal(tensors["l.10.some"], flat["some"][2])


def test_round_trip_is_exact_and_names_are_complete():
    flat = leaves()
    tensors = as_written.tensors(flat, TABLE, SIZES)
    assert {n: t.shape for n, t in tensors.items()} == rules.tensor_shapes(TABLE, SIZES)
    assert all(t.flags.c_contiguous for t in tensors.values())
    back = read(tensors)
    assert back.keys() == flat.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(back[path], leaf, err_msg=path)


def test_every_offender_is_listed():
    tensors = as_written.tensors(leaves(), TABLE, SIZES)
    tensors["renamed"] = tensors.pop("l.0.w")
    tensors["pos"] = tensors["pos"].T
    with pytest.raises(ValueError, match=r"a\.safetensors: 3 of 17 tensors") as error:
        read(tensors)
    for part in ("l.0.w: missing", "renamed: unexpected", "pos: expected [3, 5], got [5, 3]"):
        assert part in str(error.value)


def test_copies_must_agree():
    tensors = as_written.tensors(leaves(), TABLE, SIZES)
    tensors["s.2.l.0.alpha"] = tensors["s.2.l.0.alpha"] + 1
    with pytest.raises(ValueError, match=r"s\.2\.l\.0\.alpha: expected a copy of s\.0\.l\.0"):
        read(tensors)


def test_writing_refuses_another_tree():
    flat = leaves()
    flat["more"] = flat.pop("emb")
    with pytest.raises(ValueError, match=r"emb: missing.*\n.*more: unexpected"):
        as_written.tensors(flat, TABLE, SIZES)


def test_bfloat16_is_read_and_kept_on_request():
    flat = {p: leaf.astype(ml_dtypes.bfloat16) for p, leaf in leaves().items()}
    tensors = as_written.tensors(flat, TABLE, SIZES)
    assert read(tensors)["qkv"].dtype == np.float32
    kept = rules.from_upstream(tensors, TABLE, SIZES, place="x", dtype=None)
    assert kept["qkv"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(kept["qkv"], flat["qkv"])


def test_integers_are_refused_where_numbers_are_expected():
    tensors = as_written.tensors(leaves(), TABLE, SIZES)
    tensors["e.2"] = tensors["e.2"].astype(np.int8)
    with pytest.raises(ValueError, match=r"e\.2: expected floating point numbers, got int8"):
        read(tensors)


def test_mixed_dtypes_within_a_leaf_lose_nothing():
    tensors = as_written.tensors(leaves(), TABLE, SIZES)
    tensors["e.1"] = tensors["e.1"].astype(ml_dtypes.bfloat16)
    kept = rules.from_upstream(tensors, TABLE, SIZES, place="x", dtype=None)
    assert kept["emb"].dtype == np.float32
    np.testing.assert_array_equal(kept["emb"][1], tensors["e.2"])
    np.testing.assert_array_equal(kept["emb"][0], tensors["e.1"].astype(np.float32))
