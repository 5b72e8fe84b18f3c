import dataclasses
import re

import jax
import numpy as np
import pytest
import toy
from jax.sharding import PartitionSpec as P

from mvjax import gates, tree
from mvjax.config import schema
from mvjax.nn import model as model_lib
from mvjax.train import load, sharding

MESH = schema.MeshConfig(data=2, fsdp=2, tensor=2)


def model_paths(**fields) -> set[str]:
    xa = dataclasses.replace(toy.MODEL.cross_attention, **fields)
    model = model_lib.VisionSpeech(dataclasses.replace(toy.MODEL, cross_attention=xa))
    return set(tree.flatten(jax.eval_shape(model.init, jax.random.key(0))["params"]))


def test_minus_one_takes_the_devices_that_are_left():
    mesh = sharding.make_mesh(schema.MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (2, 2, 1)])
def test_mesh_that_does_not_fit(sizes):
    with pytest.raises(ValueError, match=r"8 devices.*fsdp="):
        sharding.make_mesh(schema.MeshConfig(*sizes))


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device that knows its slice."""

    id: int
    slice_index: int
    platform: str
    device_kind: str = ""


def _two_slices(sizes, platform="gpu"):
    # one slice's devices after the other's, as jax does not promise
    chips = [Chip(i, i % 2, platform) for i in range(8)]
    return sharding.make_mesh(schema.MeshConfig(*sizes), chips).devices


def test_the_data_axis_alone_goes_from_slice_to_slice():
    for placed in (_two_slices((2, 4, 1)), _two_slices((4, 2, 1, 2)), _two_slices((-1, 1, 2, 2))):
        slices = np.vectorize(lambda chip: chip.slice_index)(placed)
        half = len(placed) // 2
        assert not slices[:half].any() and slices[half:].all()
    assert len({chip.slice_index for chip in _two_slices((1, 8, 1)).ravel()}) == 2  # GPU nodes may
    apart = sharding.make_mesh(schema.MeshConfig(4, 2, 1, slices=2)).devices  # CPUs in equal parts
    assert [d.id for d in apart.ravel()] == list(range(8))


@pytest.mark.parametrize(
    ("sizes", "platform", "message"),
    [
        ((1, 8, 1), "tpu", "a multiple of 2, got data=1 and slices=2; such as --set mesh.data=2"),
        ((1, 8, 1, 2), "gpu", "a multiple of 2, got data=1"),
        ((4, 2, 1, 4), "gpu", "mesh.slices=4: the devices are in 2 slices; --set mesh.slices=2"),
        ((4, 2, 1, 1), "tpu", "mesh.slices=1: the devices are in 2 slices"),
        ((4, 2, 1, 0), "gpu", "got data=4 and slices=0"),
    ],
)
def test_slices_that_do_not_fit(sizes, platform, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _two_slices(sizes, platform)


def test_specs():
    assert sharding.spec("backbone/blocks/attn/qkv/kernel", 5) == P(
        None, "fsdp", None, "tensor", None
    )
    assert sharding.spec("depformer/blocks/attn/qkv/kernel", 6) == P(
        None, None, "fsdp", None, "tensor", None
    )
    assert sharding.spec("xa/out/kernel", 3) == P("tensor", None, "fsdp")
    assert sharding.spec("backbone/blocks/xa/q/kernel", 4) == P(None, "fsdp", "tensor", None)
    assert sharding.spec("backbone/blocks/gate/alpha", 1) == P(None)
    assert sharding.spec("gate/down/kernel", 2) == P("fsdp", None)
    assert sharding.spec("gate/alpha", 0) == P()
    assert sharding.spec("backbone/blocks/attn/qkv/scale", 5) == P(None, None, None, "tensor", None)
    assert sharding.spec("backbone/blocks/norm1/scale", 2) == P(None, None)


def test_every_rule_has_a_parameter_and_is_the_first_to_match_it(tmp_path):
    int8 = toy.with_train(toy.make_config(tmp_path), frozen_dtype="int8")
    paths = (
        model_paths()
        | model_paths(share="none")
        | model_paths(share_gate=True)
        | model_paths(gate=gates.Constant())
        | set(tree.flatten(load.abstract_params(int8).frozen))
    )
    unused = set(range(len(sharding.RULES)))
    for path in paths:
        first = next(i for i, (rule, _) in enumerate(sharding.RULES) if re.fullmatch(rule, path))
        unused.discard(first)
    assert not unused


def test_large_parameters_of_the_7b_model_are_all_sharded():
    config = schema.Config(frozen=schema.FrozenFiles("", "", "", ""))
    for path, leaf in tree.flatten(tree.merge(*load.shapes(config))).items():
        if np.prod(leaf.shape) > 4e6:
            assert set(sharding.spec(path, len(leaf.shape))) - {None}, path


def test_indivisible_dimensions_are_all_named():
    params = {"image": {"proj": {"kernel": np.zeros((3, 5)), "bias": np.zeros(5)}}, "xa": {}}
    params["xa"] = {"q": {"kernel": np.zeros((7, 3, 2))}}
    with pytest.raises(ValueError) as error:
        sharding.shardings(params, sharding.make_mesh(MESH))
    message = str(error.value)
    assert "image/proj/kernel: dimension 1 of [3, 5]" in message
    assert "xa/q/kernel: dimension 0" in message and "dimension 1 of [7, 3, 2]" in message


def test_rows_must_divide():
    data = schema.DataConfig(speech_rows=30, speechless_rows=0)
    with pytest.raises(ValueError, match=r"data\.speech_rows: 30 is not divisible by 4"):
        sharding.check_rows(data, sharding.make_mesh(MESH))
    mesh, even = sharding.make_mesh(MESH), dataclasses.replace(data, speech_rows=4)
    sharding.check_rows(even, mesh)
    with pytest.raises(
        ValueError, match=r"4 is not divisible by 4 data shards x train.grad_accum_steps=2"
    ):
        sharding.check_rows(even, mesh, grad_accum_steps=2)


def test_explain(tmp_path):
    shapes = load.shapes(toy.make_config(tmp_path))
    table = sharding.explain(
        tree.merge(*shapes), sharding.make_mesh(MESH), trained=shapes.adapters
    ).splitlines()
    (line,) = [line for line in table if line.startswith("xa/q/kernel")]
    assert line.split() == [
        *("xa/q/kernel", "[24,", "4,", "6]", "float32", "yes", "(fsdp,tensor,-)"),
        str(24 * 4 * 6 * 4 // 4),
    ]
    (line,) = [line for line in table if line.startswith("backbone/out_norm/scale")]
    assert "yes" not in line and line.endswith(" 96")
    trained = sum(leaf.size for leaf in tree.flatten(shapes.adapters).values())
    assert f"{trained:,} trained" in table[-1] and "data=2 x fsdp=2 x tensor=2" in table[-1]


def test_frozen_kernels_move_into_the_layout_of_the_platform(monkeypatch):
    mesh = sharding.make_mesh(MESH)
    kernels = {
        "qkv": np.arange(2 * 8 * 3 * 4 * 2, dtype=np.float32).reshape(2, 8, 3, 4, 2),
        "in": np.arange(2 * 8 * 2 * 6, dtype=np.float32).reshape(2, 8, 2, 6),
    }
    blocks = {"attn": {"qkv": {"kernel": kernels["qkv"]}}, "mlp": {"in": {"kernel": kernels["in"]}}}
    params = {"backbone": {"blocks": blocks, "out_norm": {"scale": np.ones(8, np.float32)}}}
    placed = jax.device_put(params, sharding.shardings(params, mesh))
    assert sharding.in_formats(placed, mesh) == placed  # of a CPU nothing moves
    monkeypatch.setattr(sharding, "_LAID_OUT_ON", "cpu")
    moved = tree.flatten(sharding.in_formats(placed, mesh))
    orders = {"attn/qkv": (0, 2, 3, 1, 4), "mlp/in": (0, 2, 1, 3)}
    for name, order in orders.items():
        leaf = moved[f"backbone/blocks/{name}/kernel"]
        assert leaf.format.layout.major_to_minor == order
        np.testing.assert_array_equal(leaf, kernels[name.split("/")[1]])
        double = jax.jit(lambda x: 2 * x, in_shardings=leaf.sharding)
        np.testing.assert_array_equal(double(leaf), 2 * kernels[name.split("/")[1]])
