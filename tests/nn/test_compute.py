"""What each remat policy keeps, by counting bytes."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import compute as compute_lib
from mvjax.nn import model as model_lib
from mvjax.train import sharding

TRAINED = ("(xa|image/(proj|norm)|backbone/blocks/(gate|norm_xa))/.*",)
FLOAT = 4  # bytes


@functools.cache
def kept(remat, mesh=None) -> list[jax.ShapeDtypeStruct]:
    """Everything that the backward pass of the text path holds on to, kernels among it."""
    model = model_lib.VisionSpeech(toy.MODEL, compute_lib.Compute(remat, mesh=mesh))
    adapters, frozen = tree.partition(toy.params(), TRAINED)

    def backward(adapters):
        def z(adapters):
            params = tree.merge(adapters, frozen)
            args = jnp.asarray(toy.codes()[:, :1]), jnp.asarray(toy.pixels())
            return model.apply({"params": params}, *args, depth_codebooks=0, method="features").z

        return jax.vjp(z, adapters)[1]

    return jax.tree.leaves(jax.eval_shape(backward, adapters))


def kept_bytes(remat) -> int:
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in kept(remat))


def test_policies_keep_what_they_name():
    c = toy.MODEL.backbone
    frames = toy.B * toy.T * c.layers * FLOAT
    # the plain attention needs no result of its own: 7 of the 8 named
    assert kept_bytes("attention") - kept_bytes("full") == 7 * c.width * frames
    assert kept_bytes("frozen") - kept_bytes("attention") == 2 * c.hidden * frames
    assert kept_bytes("none") > kept_bytes("frozen")


@pytest.mark.parametrize("remat", ["none", "frozen", "attention", "full"])
def test_flat_products_keep_no_copy_of_a_kernel(remat):
    mesh = sharding.make_mesh(schema.MeshConfig(), jax.devices()[:1])
    assert compute_lib.Compute(remat, mesh=mesh).flat
    flat, plain = (collections.Counter(x.shape for x in kept(remat, m)) for m in (mesh, None))
    assert not flat - plain


@pytest.mark.parametrize("flat", [True, False])
def test_on_one_cpu_few_layers_are_straight_code(flat):
    mesh = sharding.make_mesh(schema.MeshConfig(), jax.devices()[:1]) if flat else None
    model = model_lib.VisionSpeech(toy.MODEL, compute_lib.Compute(mesh=mesh))

    def forward(params):
        codes, images = jnp.asarray(toy.codes()), jnp.asarray(toy.pixels())
        return model.apply({"params": params}, codes, images, depth_codebooks=2)

    text = str(jax.make_jaxpr(forward)(toy.params()))
    layers = toy.MODEL.backbone.layers
    assert layers > 1
    assert (f"unroll={layers}" in text) == flat
    assert compute_lib.Compute(mesh=mesh).unroll(32) == 1
