"""What a frame of a model costs, by XLA's own count: needs no weights and no accelerator."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from mvjax import tree, types
from mvjax.config import schema
from mvjax.nn import model as model_lib
from mvjax.runtimes import interface, sampling, slots
from mvjax.runtimes.jax import generate, kv_cache
from mvjax.runtimes.jax import model as runtime
from mvjax.runtimes.jax import weights as weights_lib


class FrameCost(NamedTuple):
    """Of one frame of one conversation that sees an image, with a full KV cache.

    Attributes:
      flops: floating-point operations.
      bytes: that the instructions of the compiled program read and write; what stays in a cache counts, too.
    """

    flops: float
    bytes: float


class Arguments(NamedTuple):
    """ShapeDtypeStructs of what `model.frame_step` is called with."""

    weights: weights_lib.Weights
    caches: list[kv_cache.Held]
    images: list[kv_cache.Held]
    packed: jax.ShapeDtypeStruct
    spec: slots.Inputs


def arguments(
    config: schema.ModelConfig,
    *,
    rows: int = 1,
    params: tree.Tree | None = None,
    stored: interface.KvCache | None = None,
) -> Arguments:
    """Returns those of so many conversations that see images.

    `params`: the model's, else as initialized; `stored`: how KV caches are, as `kv_cache.empty` takes it.
    """
    module = model_lib.VisionSpeech(config)
    if params is None:
        params = jax.eval_shape(module.init, jax.random.key(0))["params"]
    size = config.siglip.image_size
    pixels = jax.ShapeDtypeStruct((rows, size, size, 3), np.float32)
    images = jax.eval_shape(
        lambda leaves, image: kv_cache.images(config, generate.image_kv(module, leaves, image)),
        params,
        pixels,
    )
    inputs = slots.Inputs(
        column=np.zeros((rows, config.codebooks), np.int32),
        position=np.zeros(rows, np.int32),
        sees=np.ones(rows, bool),
        text=np.full(rows, types.UNGENERATED, np.int32),
        audio=np.full((rows, config.codebooks_out), types.UNGENERATED, np.int32),
        sampling=sampling.greedy(rows, config.codebooks_out),
    )
    packed = runtime.pack(inputs)
    return Arguments(
        weights=jax.eval_shape(lambda leaves: weights_lib.unstack(leaves, config), params),
        caches=jax.eval_shape(
            lambda: kv_cache.empty(config, rows=rows, dtype=config.dtype, stored=stored)
        ),
        images=images,
        packed=jax.ShapeDtypeStruct(packed.shape, packed.dtype),
        spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs),
    )


def count(config: schema.ModelConfig) -> FrameCost:
    """Compiles the step of `model.JaxModel` for the default device, and returns XLA's cost analysis of it."""
    *arrays, spec = arguments(config)
    lowered = runtime.frame_step.lower(config, *arrays, spec=spec, probes=False)
    analysis = lowered.compile().cost_analysis()
    assert analysis is not None
    return FrameCost(float(analysis["flops"]), float(analysis["bytes accessed"]))
