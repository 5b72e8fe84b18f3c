"""The dtypes of frozen parameters, and that the backward pass computes nothing for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import compute as compute_lib
from mvjax.nn import layers
from mvjax.nn import model as model_lib
from mvjax.train import frozen_dtype, gradients, load, sharding

MESH = schema.MeshConfig(data=2, fsdp=2, tensor=2)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("equation", "x", "kernel", "axes"),
    [
        ("BTD,DpNH->BTpNH", (2, 5, 12), (12, 3, 4, 6), (-4,)),
        ("BTNH,NHD->BTD", (2, 5, 4, 6), (4, 6, 12), (-3, -2)),
        ("...D,DV->...V", (2, 5, 12), (12, 7), (-2,)),
        ("MQd,Qdtf->MQtf", (9, 3, 8), (3, 8, 2, 11), (-3,)),
        ("MQnh,Qnhd->MQd", (9, 3, 2, 4), (3, 2, 4, 8), (-3, -2)),
    ],
)
def test_a_matmul_with_codes_is_that_with_the_rounded_kernel(equation, x, kernel, axes):
    x, kernel = jnp.asarray(noise(*x)), jnp.asarray(noise(*kernel, seed=1))
    codes, scale = frozen_dtype.quantize(kernel, axes)
    assert codes.dtype == jnp.int8 and int(jnp.abs(codes.astype(jnp.int32)).max()) == 127
    rounded = codes.astype(jnp.float32) * scale
    assert np.all(np.abs(rounded - kernel) <= 0.501 * np.broadcast_to(scale, kernel.shape))
    got = layers.contract(equation, x, layers.Weight(codes, scale), dtype="float32")
    np.testing.assert_allclose(got, jnp.einsum(equation, x, rounded), rtol=1e-5, atol=1e-5)


def test_codes_survive_a_second_quantization():
    kernel = jnp.asarray(noise(8, 5)).at[:, 2].set(0)
    codes, scale = frozen_dtype.quantize(kernel, (-2,))
    again, _ = frozen_dtype.quantize(codes.astype(jnp.float32) * scale, (-2,))
    np.testing.assert_array_equal(again, codes)
    assert not np.any(codes[:, 2])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toy.make_config(tmp_path_factory.mktemp("frozen"), mesh=MESH)


def with_dtype(run, kind):
    return toy.with_train(run, frozen_dtype=kind)


def test_int8_leaves_are_placed_by_the_rules_and_as_announced(run):
    run = with_dtype(run, "int8")
    mesh = sharding.make_mesh(run.mesh)
    placed = load.frozen(run, mesh)
    tree.assert_same_tree(load.abstract_params(run).frozen, placed, place="int8")
    flat = tree.flatten(placed)
    for path, leaf in flat.items():
        assert leaf.sharding.spec == sharding.spec(path, leaf.ndim), path
    kernels = [
        path for path in flat if path.startswith(("backbone", "depformer")) and "kernel" in path
    ]
    assert kernels and all(flat[path].dtype == jnp.int8 for path in kernels)
    assert flat["backbone/text_emb/embedding"].dtype == jnp.bfloat16
    assert flat["backbone/blocks/norm1/scale"].dtype == jnp.float32
    original = toy.stored(run)["backbone/blocks/mlp/out/kernel"]
    scale = np.asarray(flat["backbone/blocks/mlp/out/scale"])
    error = np.asarray(flat["backbone/blocks/mlp/out/kernel"]) * scale - original
    assert scale.shape == (3, 1, 24) and np.all(np.abs(error) <= 0.501 * scale)


def test_bfloat16_narrows_matrices_only(run):
    run = with_dtype(run, "bfloat16")
    for path, leaf in tree.flatten(load.abstract_params(run).frozen).items():
        narrow = path.rpartition("/")[2] in ("kernel", "embedding")
        assert leaf.dtype == (jnp.bfloat16 if narrow else jnp.float32), path


def equations(jaxpr):
    """All equations, those inside loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@functools.cache
def step_equations(kind, remat="full"):
    model = dataclasses.replace(toy.MODEL, dtype="bfloat16")
    run = toy.planned(model, frozen_dtype=kind, remat=remat)
    model = model_lib.VisionSpeech(run.model, compute_lib.Compute(remat))
    abstract = load.abstract_params(run)
    batch = toy.Data(run.data)[0]
    program = jax.make_jaxpr(lambda a, f, b: gradients.gradients(a, f, b, model=model, run=run))
    return list(equations(program(abstract.adapters, abstract.frozen, batch).jaxpr))


def outputs(primitive, kind):
    return [
        (variable.aval.shape, variable.aval.dtype)
        for equation in step_equations(kind)
        if equation.primitive.name == primitive
        for variable in equation.outvars
    ]


# one layer of each frozen kernel, and the head; D=24 F=66 N=4 H=6 V=34, d=16 n=2 h=8 f=44 C=22
FROZEN_SHAPES = {(24, 3, 4, 6), (24, 2, 66), (66, 24), (24, 34), (2, 24, 16), (2, 16, 22)}


@pytest.mark.parametrize("kind", ["as stored", "int8"])
def test_no_gradient_of_a_frozen_kernel_is_computed(kind):
    found = [sorted(shape) for shape, _ in outputs("dot_general", kind)]
    assert len(found) > 40
    for shape in FROZEN_SHAPES:
        assert sorted(shape) not in found, shape
    assert sorted((24, 4, 6)) in found  # of an adapter it is: the query projection


@pytest.mark.parametrize("kind", ["as stored", "int8"])
def test_no_frozen_kernel_is_widened_to_float32(kind):
    widened = [s for s, dtype in outputs("convert_element_type", kind) if dtype == jnp.float32]
    for shape in FROZEN_SHAPES | {(35, 24), (6, 23, 24)}:
        assert shape not in widened and (3, *shape) not in widened, shape


def test_no_text_logits_exist_whole():
    shapes = [s for e in step_equations("as stored") for s in (v.aval.shape for v in e.outvars)]
    assert (4, 9, 34) in shapes  # one chunk is the whole toy row
    run = toy.planned(loss_chunk=2)
    model = model_lib.VisionSpeech(run.model)
    abstract = load.abstract_params(run)
    program = jax.make_jaxpr(lambda a, f, b: gradients.gradients(a, f, b, model=model, run=run))
    chunked = equations(program(*abstract, toy.Data(run.data)[0]).jaxpr)
    shapes = [v.aval.shape for e in chunked for v in e.outvars]
    assert (4, 2, 34) in shapes and (4, 9, 34) not in shapes and (8, 7, 34) not in shapes


def test_only_trained_codebooks_reach_the_depth_transformer():
    for equation in step_equations("as stored"):
        if equation.primitive.name == "scan":
            for variable in equation.invars:
                assert variable.aval.shape[:2] != (2, 3), "a third level enters the scan"
