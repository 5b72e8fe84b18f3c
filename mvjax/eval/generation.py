"""Batches of prompts through the model: rows sharded over the devices of its mesh, and over processes.

Each process gives the rows that its devices hold (`Generator.rows`) and gets the results of all.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, UInt8

from mvjax import tree
from mvjax.data import images as images_lib
from mvjax.data import streams
from mvjax.eval import model as eval_model
from mvjax.nn import alignment
from mvjax.nn import model as model_lib
from mvjax.runtimes.jax import generate
from mvjax.train import distributed, sharding

Images = UInt8[np.ndarray, "b height width 3"] | None  # None: no row has one


class WrittenAnswers(NamedTuple):
    """Of all rows."""

    ids: Int[np.ndarray, "B max_tokens"]  # -1 from the end of the answer on
    gates: Float[np.ndarray, "B places L"]  # of the prompt's tokens and the answer's


class SpokenAnswers(NamedTuple):
    """Of all rows, frame by frame."""

    text_ids: Int[np.ndarray, "B T"]
    audio_codes: Int[np.ndarray, "B Q T"]
    user_codes: Int[np.ndarray, "B U T"]
    gates: Float[np.ndarray, "B T L"]


class Likelihoods(NamedTuple):
    """Of all rows."""

    log_likelihood: Float[np.ndarray, "B"]  # of the continuation, the sum over its tokens
    gates: Float[np.ndarray, "B T L"]


class Generator:
    """A model that answers whole batches, greedily."""

    def __init__(self, model: eval_model.LoadedModel) -> None:
        self.model = model
        mesh = model.mesh
        self._feed = None if mesh is None else distributed.BatchFeed(mesh)
        self._sharding = None if mesh is None else sharding.rows(mesh)
        # batches have a multiple of so many rows
        self.shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in sharding.ROWS)

    def rows(self, count: int) -> list[int]:
        """Returns which of `count` rows of a batch this process gives, ascending."""
        if self._feed is None:
            return list(range(count))
        each = count // self.shards
        return [shard * each + i for shard in self._feed.shards for i in range(each)]

    def write(
        self,
        prompts: Int[np.ndarray, "b P"],
        lengths: Int[np.ndarray, "b"],
        images: Images,
        *,
        max_tokens: int,
    ) -> WrittenAnswers:
        """Continues written prompts up to the end of the answer, in at most `max_tokens`."""
        out = generate.generate_text(
            self.model.model,
            self.model.params,
            self._everywhere(prompts),
            self._everywhere(lengths),
            self._image_kv(images),
            max_tokens=max_tokens,
            stop_ids=(streams.BOS, streams.EOS),
        )
        return WrittenAnswers(*map(self._here, out))

    def converse(
        self,
        user_codes: Int[np.ndarray, "b U T"],
        images: Images,
        *,
        forced_text: Int[np.ndarray, "b T"] | None = None,
        forced_audio: Int[np.ndarray, "b Q T"] | None = None,
    ) -> SpokenAnswers:
        """Steps through the users' speech; UNGENERATED of what is forced leaves the choice to the model."""
        codes = self._everywhere(user_codes)
        out = generate.generate(
            self.model.model,
            self.model.params,
            codes,
            self._image_kv(images),
            forced_text=None if forced_text is None else self._everywhere(forced_text),
            forced_audio=None if forced_audio is None else self._everywhere(forced_audio),
            with_text_logits=False,
        )
        kept = (out.text_ids, out.audio_codes, codes, out.layer_gates)
        return SpokenAnswers(*map(self._here, kept))

    def likelihoods(
        self,
        ids: Int[np.ndarray, "b T"],
        lengths: Int[np.ndarray, "b"],
        counts: Int[np.ndarray, "b"],
        images: Images,
        *,
        longest: int,
    ) -> Likelihoods:
        """Scores given continuations: `counts` ids (at most `longest`) after `lengths` of a prompt."""
        inputs = (self._everywhere(x) for x in (ids, lengths, counts))
        out = _likelihoods(
            self.model.model, self.model.params, *inputs, self._image_kv(images), longest=longest
        )
        return Likelihoods(*map(self._here, out))

    def _image_kv(self, images: Images) -> Any:
        if images is None:
            return None
        pixels = self._everywhere(images_lib.normalize(images))
        return generate.image_kv(self.model.model, self.model.params, pixels)

    def _everywhere(self, local: np.ndarray) -> Any:
        if self._sharding is None:
            return jnp.asarray(local)
        return jax.make_array_from_process_local_data(self._sharding, np.asarray(local))

    def _here(self, rows: Any) -> np.ndarray:
        if isinstance(rows, jax.Array) and not rows.is_fully_addressable:
            rows = multihost_utils.process_allgather(rows, tiled=True)
        return np.asarray(rows)


@functools.partial(jax.jit, static_argnames=("model", "longest"))
def _likelihoods(
    model: model_lib.VisionSpeech,
    params: tree.Tree,
    ids: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    counts: Int[Array, "B"],
    kv: Any,
    *,
    longest: int,
) -> tuple[Float[Array, "B"], Float[Array, "B T L"]]:
    """The text logits of the continuation's places alone are computed: they are V / D times as large as z."""

    def apply(*inputs: Any, method: str) -> Any:
        return model.apply({"params": params}, *inputs, method=method)

    columns = alignment.delay_codes(ids[:, None], model.config)
    z, gates = apply(columns[:, :, :-1], kv, method="hidden")
    at = jnp.arange(longest, dtype=jnp.int32)[None]
    places = jnp.minimum(lengths[:, None] + at, ids.shape[1] - 1)
    chosen = jnp.take_along_axis(z, places[:, :, None], axis=1)
    logits = apply(chosen, method="text_logits")
    targets = jnp.maximum(jnp.take_along_axis(ids, places, axis=1), 0)
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, :, None], axis=2)[:, :, 0]
    total = jnp.sum(jnp.where(at < counts[:, None], scores, 0.0), axis=1)
    return total, jnp.moveaxis(gates, 0, 2)
