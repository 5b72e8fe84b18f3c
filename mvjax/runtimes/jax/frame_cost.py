"""What a frame of a model costs, by XLA's own count: needs no weights and no accelerator."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from mvjax import types
from mvjax.config import schema
from mvjax.nn import model as model_lib
from mvjax.runtimes import sampling, slots
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


def count(config: schema.ModelConfig) -> FrameCost:
    """Compiles the step of `model.JaxModel` for the default device, and returns XLA's cost analysis of it."""
    module = model_lib.VisionSpeech(config)
    params = jax.eval_shape(module.init, jax.random.key(0))["params"]
    weights = jax.eval_shape(lambda tree: weights_lib.unstack(tree, config), params)
    dtype, size = config.dtype, config.siglip.image_size
    caches = jax.eval_shape(lambda: kv_cache.empty(config, rows=1, dtype=dtype))
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    images = jax.eval_shape(
        lambda tree, image: kv_cache.images(config, generate.image_kv(module, tree, image)),
        params,
        pixels,
    )
    inputs = slots.Inputs(
        column=np.zeros((1, config.codebooks), np.int32),
        position=np.zeros(1, np.int32),
        sees=np.ones(1, bool),
        text=np.full(1, types.UNGENERATED, np.int32),
        audio=np.full((1, config.codebooks_out), types.UNGENERATED, np.int32),
        sampling=sampling.greedy(1, config.codebooks_out),
    )
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    packed = runtime.pack(inputs)
    lowered = runtime.frame_step.lower(
        config, weights, caches, images, packed, spec=spec, probes=False
    )
    analysis = lowered.compile().cost_analysis()
    assert analysis is not None
    return FrameCost(float(analysis["flops"]), float(analysis["bytes accessed"]))
