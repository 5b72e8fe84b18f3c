"""Arrays made shard by shard: right values and places, each part read once, little memory."""

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
from mvjax.weights import kyutai, placement, rules, safetensors_io

SIZES = {"layer": 3, "D": 16, "N": 4, "H": 6}
TABLE = [
    rules.Rule("qkv", "l.{layer}.w", "layer D 3 N H -> (3 N H) D"),
    rules.Rule(("q", "k"), "fused", "2 D N H -> (2 N H) D"),
    rules.Rule("norm", "l.{layer}.alpha", "layer D -> 1 1 D"),
    rules.Rule("alpha", "alpha", " -> 1 1 1"),
]
SPECS = {
    "qkv": P(None, "fsdp", None, "tensor", None),
    "q": P("fsdp", "tensor", None),
    "k": P("tensor"),
    "norm": P(),
    "alpha": P(),
}


def shardings(**sizes):
    mesh = sharding.make_mesh(schema.MeshConfig(**sizes))
    return {path: NamedSharding(mesh, spec) for path, spec in SPECS.items()}


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}])
@pytest.mark.parametrize("dtype", [None, np.float32, ml_dtypes.bfloat16])
def test_values_places_and_dtypes(sizes, dtype):
    flat, tensors = recorded.make(TABLE, SIZES, ml_dtypes.bfloat16)
    places = shardings(**sizes)
    leaves = rules.leaf_views(tensors, TABLE, SIZES, place="x", dtype=None)
    placed = placement.place(leaves, places, dtype=dtype)
    assert placed.keys() == flat.keys()
    for path, array in placed.items():
        assert array.sharding == places[path] and array.committed
        assert array.dtype == (dtype or ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(array, np.float32), flat[path].astype(np.float32))


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}])
def test_each_value_is_read_once_however_many_devices_hold_it(sizes):
    _, tensors = recorded.make(TABLE, SIZES)
    placement.place(rules.leaf_views(tensors, TABLE, SIZES, place="x"), shardings(**sizes))
    assert {n: t.read for n, t in tensors.items()} == {n: t.values.size for n, t in tensors.items()}


def test_damage_in_one_shard_names_the_tensor():
    _, tensors = recorded.make(TABLE, SIZES)
    tensors["l.2.w"].values[-1, -1] = np.inf
    leaves = rules.leaf_views(tensors, TABLE, SIZES, place="a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: 1 (.|\n)*l\.2\.w"):
        placement.place(leaves, shardings(fsdp=8))


@pytest.mark.parametrize("part_bytes", [1, 100, 2**20])
def test_host_parts_are_the_values_in_order(part_bytes, monkeypatch):
    monkeypatch.setattr(placement, "PART_BYTES", part_bytes)
    flat, tensors = recorded.make(TABLE, SIZES)
    places = shardings(fsdp=2, tensor=2)
    placed = placement.place(rules.leaf_views(tensors, TABLE, SIZES, place="x"), places)
    for path, leaf in flat.items():
        for held in (leaf, placed[path]):
            parts = list(placement.host_parts(held))
            joined = np.concatenate([part.reshape(-1) for part in parts])
            np.testing.assert_array_equal(joined, leaf.reshape(-1))
            assert max(p.nbytes for p in parts) <= max(
                part_bytes, leaf.nbytes // (leaf.shape or (1,))[0]
            )


def test_loading_holds_one_shard_besides_the_devices(tmp_path):
    """What numpy allocates; mapped pages and the devices' own copies do not count here."""
    config = schema.ModelConfig(
        backbone=schema.BackboneConfig(width=128, layers=3, heads=4, hidden=352),
        depformer=schema.DepformerConfig(width=64, layers=2, heads=4, hidden=176),
        text_vocab=1000,
        audio_vocab=64,
    )
    table, sizes = kyutai.moshi_rules(config), kyutai.sizes(config)
    shapes = rules.tensor_shapes(table, sizes)
    path = tmp_path / "m.safetensors"
    bf16 = {n: np.full(s, 0.5, np.float32).astype(ml_dtypes.bfloat16) for n, s in shapes.items()}
    safetensors_io.write(path, bf16)
    del bf16
    mesh = sharding.make_mesh(schema.MeshConfig(fsdp=8))
    tracemalloc.start()
    leaves = kyutai.open_moshi(path, config, dtype=None)
    placed = placement.place(leaves, tree.flatten(sharding.shardings(tree.unflatten(leaves), mesh)))
    jax.block_until_ready(placed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = path.stat().st_size
    assert size > 3e6 and sum(array.nbytes for array in placed.values()) > 0.99 * size
    assert peak < 0.2 * size, (peak, size)
