"""Upstream's tensors made one at a time: right values, from hosts and devices, and little memory."""

import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
import recorded
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mvjax import tree
from mvjax.config import schema
from mvjax.train import sharding
from mvjax.weights import kyutai, rules, safetensors_io

SIZES = {"layer": 2, "D": 8, "N": 3, "H": 4, "step": 3}
TABLE = [
    rules.Rule("qkv", "l.{layer}.w", "layer D 3 N H -> (3 N H) D"),
    rules.Rule("steps", "s.{layer}.w", "layer step N H D -> (step D) (N H)"),
    rules.Rule(("q", "k"), "fused", "2 D N H -> (2 N H) D"),
    rules.Rule(("a", "b"), "own.{layer}", "2 layer D N H -> (2 N H) D"),
    rules.Rule("norm", "s.{step}.l.{layer}.alpha", "layer D -> 1 1 D", (("step", 3),)),
    rules.Rule("alpha", "alpha", " -> 1 1 1"),
]
SPECS = {"qkv": P(None, "fsdp"), "steps": P(None, None, None, "tensor"), "q": P("fsdp")}


def devices(flat):
    """The leaves as arrays, some spread over devices."""
    mesh = sharding.make_mesh(schema.MeshConfig(fsdp=4, tensor=2))
    return {
        path: jax.device_put(leaf, NamedSharding(mesh, SPECS.get(path, P())))
        for path, leaf in flat.items()
    }


@pytest.mark.parametrize("dtype", [None, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("place", [dict, devices])
def test_values_are_those_of_the_file_wherever_the_leaves_are(place, dtype):
    flat = recorded.leaves(TABLE, SIZES, ml_dtypes.bfloat16)
    views = rules.upstream_views(place(flat), TABLE, SIZES, place="x", dtype=dtype)
    assert {name: view.shape for name, view in views.items()} == rules.tensor_shapes(TABLE, SIZES)
    for view in views.values():
        assert view.dtype == view[()].dtype == (dtype or ml_dtypes.bfloat16)
    back = rules.from_upstream(views, TABLE, SIZES, place="x", dtype=None)
    for path, leaf in flat.items():
        np.testing.assert_array_equal(back[path].astype(leaf.dtype), leaf, err_msg=path)
    whole = views["l.1.w"][()]
    np.testing.assert_array_equal(views["l.1.w"][slice(5, 9), slice(1, 3)], whole[5:9, 1:3])


def test_a_tensor_reads_its_own_values_and_only_when_it_is_read():
    flat = {p: recorded.Recorded(x) for p, x in recorded.leaves(TABLE, SIZES).items()}
    views = rules.upstream_views(flat, TABLE, SIZES, place="x", dtype=np.float16)
    assert not any(leaf.read for leaf in flat.values())
    for name, view in views.items():
        before = sum(leaf.read for leaf in flat.values())
        size = view[()].size
        assert sum(leaf.read for leaf in flat.values()) - before == size, name


def test_writing_holds_one_tensor_besides_the_parameters(tmp_path):
    config = schema.ModelConfig(
        backbone=schema.BackboneConfig(width=128, layers=6, heads=4, hidden=352),
        depformer=schema.DepformerConfig(width=64, layers=2, heads=4, hidden=176),
        text_vocab=1000,
        audio_vocab=64,
    )
    shapes = rules.leaf_shapes(kyutai.moshi_rules(config), kyutai.sizes(config))
    params = tree.unflatten({path: np.full(s, 0.5, np.float32) for path, s in shapes.items()})
    path = tmp_path / "m.safetensors"
    tracemalloc.start()
    kyutai.save_moshi(path, params, config, dtype=ml_dtypes.bfloat16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tensors = safetensors_io.tensors(path)
    size = path.stat().st_size
    # the largest tensor, before and after its conversion, is 0.15 of the file; the header comes to it
    assert size > 5e6 and peak < 0.3 * size, (peak, size)
    assert safetensors_io.verify(path) == len(tensors)
