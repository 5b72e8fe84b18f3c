"""The JAX model as a real-time runtime: any number of conversations in one batch, a frame at a time.

A frame is one compiled step, one transfer to the device and one from it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import model as model_lib
from mvjax.nn import xattn
from mvjax.runtimes import interface, slots
from mvjax.runtimes.jax import draws, frames, generate, kv_cache
from mvjax.runtimes.jax import weights as weights_lib


class JaxModel(slots.BatchedModel):
    """As `interface.Model`; parameters may be arrays of any kind, and lazy tensors."""

    def __init__(
        self,
        config: schema.ModelConfig,
        params: tree.Tree,
        *,
        kv_cache: interface.KvCache | None = None,
    ) -> None:
        # how a conversation begins is in the inputs of its frames: programs are the same
        self.config = dataclasses.replace(config, stream=schema.StreamConfig())
        self.kv_cache: interface.KvCache | None = kv_cache
        self.weights = weights_lib.unstack(params, config)
        self._image_params = image_params(params, config)
        scope = config.cross_attention.scope
        self.scope = range(
            scope.start, 2**62 if scope.frames is None else scope.start + scope.frames
        )
        self.first_step_forcing = config.stream.first_step_forcing
        self.user_early = config.stream.user_early

    @property
    def sizes(self) -> interface.Sizes:
        """As `interface.Model.sizes`."""
        c = self.config
        return interface.Sizes(
            c.delays, c.codebooks_out, c.text_vocab, c.audio_vocab, c.siglip.image_size
        )

    def encode_image(self, pixels: Float[np.ndarray, "1 height width 3"]) -> xattn.KeysValues:
        """As `interface.Model.encode_image`."""
        self.sizes.check_pixels(pixels)
        return generate.image_kv(model_lib.VisionSpeech(self.config), self._image_params, pixels)

    def engine(self, rows: int, *, probes: bool) -> Engine:
        """As `slots.BatchedModel.engine`."""
        return Engine(self, rows, probes=probes)


def image_params(params: tree.Tree, config: schema.ModelConfig) -> tree.Tree:
    """Returns the parameters that `generate.image_kv` reads, on the device; leaves may be lazy tensors."""
    own = "backbone/blocks/xa/" if config.cross_attention.share == "none" else "xa/"
    return tree.unflatten(
        {
            path: jnp.asarray(leaf[()])
            for path, leaf in tree.flatten(params).items()
            if path.startswith(("image/", own))
        }
    )


class Engine:
    """As `slots.Engine`. A single row has two programs, with its image and without it."""

    def __init__(self, model: JaxModel, rows: int, *, probes: bool) -> None:
        c, b, dtype = model.config, model.config.backbone, model.config.dtype
        self._config, self._weights, self._rows, self._probes = c, model.weights, rows, probes
        self._caches = kv_cache.empty(c, rows=rows, dtype=dtype, stored=model.kv_cache)
        own = c.cross_attention.share == "none"
        shape = (rows * b.heads, c.siglip.tokens, b.width // b.heads)
        self._images = [
            kv_cache.Held(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
            for _ in range(len(c.cross_attention_layers) if own else 1)
        ]

    def show(self, row: int, image: xattn.KeysValues) -> None:
        """As `slots.Engine.show`."""
        self._images = _show(self._config, self._images, image, np.int32(row))

    def clear(self, row: int) -> None:
        """As `slots.Engine.clear`."""
        self._caches = _clear(self._caches, np.int32(row), heads=self._config.backbone.heads)

    def step(self, inputs: slots.Inputs) -> slots.Outputs:
        """As `slots.Engine.step`."""
        seeing = self._rows > 1 or bool(inputs.sees.any())
        spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        self._caches, out = frame_step(
            self._config,
            self._weights,
            self._caches,
            self._images if seeing else None,
            pack(inputs),
            spec=spec,
            probes=self._probes,
        )
        return slots.Outputs(*jax.device_get(out))


@functools.partial(jax.jit, static_argnames=("config", "spec", "probes"), donate_argnames="caches")
def frame_step(
    config: schema.ModelConfig,
    weights: weights_lib.Weights,
    caches: list[kv_cache.Held],
    images: list[kv_cache.Held] | None,
    packed: Int32[Array, "B words"],
    *,
    spec: slots.Inputs,
    probes: bool,
) -> tuple[list[kv_cache.Held], tuple[Any, ...]]:
    """Returns the KV caches, which are written in place, and the fields of `slots.Outputs`."""
    inputs = unpack(packed, spec)
    how = inputs.sampling
    caches, x = frames.backbone(
        config,
        weights,
        caches,
        inputs.column,
        inputs.position,
        images=images,
        sees=inputs.sees,
    )
    hot = how.temperature
    logits = draws.penalized(x.text_logits, how.recent, how.penalty, how.pad_multiplier * hot[:, 0])
    text = draws.choose(logits, how.uniform[:, 0], hot[:, 0], how.top_k[:, 0])
    text = frames.taken(text, inputs.text)
    audio, audio_logits = frames.depth(
        config,
        weights.depth,
        x.z,
        text,
        lambda logits, level: draws.choose(
            logits, how.uniform[:, 1 + level], hot[:, 1], how.top_k[:, 1]
        ),
        forced=inputs.audio,
    )
    fields = None
    if probes:
        fields = {
            "text_logits": x.text_logits,
            "audio_logits": audio_logits,
            "gates": x.gates,
            "hidden": x.hidden,
        }
    return caches, (text, audio, x.gate, fields)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="images")
def _show(
    config: schema.ModelConfig,
    images: list[kv_cache.Held],
    image: xattn.KeysValues,
    row: Int32[Array, ""],
) -> list[kv_cache.Held]:
    """Returns the images of all rows, with another in this row."""

    def put(rows: Array, one: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(
            rows, one.astype(rows.dtype), row * len(one), axis=0
        )

    return jax.tree.map(put, images, kv_cache.images(config, image))


@functools.partial(jax.jit, static_argnames="heads", donate_argnames="caches")
def _clear(
    caches: list[kv_cache.Held], row: Int32[Array, ""], *, heads: int
) -> list[kv_cache.Held]:
    """Returns the KV caches with zeros in this row; in place."""

    def cleared(x: Array) -> Array:
        zeros = jnp.zeros((heads, *x.shape[1:]), x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(x, zeros, row * heads, axis=0)

    return jax.tree.map(cleared, caches)


def pack(inputs: slots.Inputs) -> Int32[np.ndarray, "B words"]:
    """Returns all fields side by side, as integers of 32 bits, for one transfer."""
    rows = len(inputs.position)
    words = [
        x.astype(np.int32) if x.dtype == bool else x.view(np.int32) for x in jax.tree.leaves(inputs)
    ]
    return np.concatenate([x.reshape(rows, -1) for x in words], axis=1)


def unpack(packed: Int32[Array, "B words"], spec: slots.Inputs) -> Any:
    """Returns `slots.Inputs` with arrays of these shapes and dtypes."""
    leaves, structure = jax.tree.flatten(spec)
    ends = np.cumsum([np.prod(leaf.shape[1:], dtype=int) for leaf in leaves])
    parts = jnp.split(packed, ends[:-1].tolist(), axis=1)
    fields = [
        (
            part != 0 if leaf.dtype == bool else jax.lax.bitcast_convert_type(part, leaf.dtype)
        ).reshape(leaf.shape)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, fields)
