"""Batches of prompts through the model: rows sharded over the devices of its mesh, and over processes.

Each process gives the rows that its devices hold (`Generator.rows`) and gets the results of all. On one CPU
its cores share the rows: a step of a small model is too short for XLA to share it out.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
from collections.abc import Callable, Sequence
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

# cores share a batch if each has so many rows, for all read every weight, and if the weights, of which each
# makes copies, are at most so many bytes
_ROWS_OF_A_CORE, _SHARED_BYTES = 16, 1_000_000_000


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
        self._cores = _cores(model)
        self._pool = concurrent.futures.ThreadPoolExecutor(self._cores)
        # rows of those before that had images, and zeros like their keys and values
        self._blank: tuple[int, Any] | None = None

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

        def write(prompts: np.ndarray, lengths: np.ndarray, images: Images) -> Any:
            kv, has_image = self._seen(images, len(prompts))
            return generate.generate_text(
                self.model.model,
                self.model.params,
                self._everywhere(prompts),
                self._everywhere(lengths),
                kv,
                has_image,
                max_tokens=max_tokens,
                stop_ids=(streams.BOS, streams.EOS),
            )

        return WrittenAnswers(*self._on_cores(write, prompts, lengths, images))

    def converse(
        self,
        user_codes: Int[np.ndarray, "b U T"],
        images: Images,
        *,
        forced_text: Int[np.ndarray, "b T"] | None = None,
        forced_audio: Int[np.ndarray, "b Q T"] | None = None,
    ) -> SpokenAnswers:
        """Steps through the users' speech; UNGENERATED of what is forced leaves the choice to the model."""

        def converse(
            user: np.ndarray, images: Images, text: np.ndarray | None, audio: np.ndarray | None
        ) -> Any:
            codes = self._everywhere(user)
            out = generate.generate(
                self.model.model,
                self.model.params,
                codes,
                self._image_kv(images),
                forced_text=None if text is None else self._everywhere(text),
                forced_audio=None if audio is None else self._everywhere(audio),
                with_text_logits=False,
            )
            return out.text_ids, out.audio_codes, codes, out.layer_gates

        return SpokenAnswers(
            *self._on_cores(converse, user_codes, images, forced_text, forced_audio)
        )

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

        def score(ids: np.ndarray, lengths: np.ndarray, counts: np.ndarray, images: Images) -> Any:
            inputs = (self._everywhere(x) for x in (ids, lengths, counts))
            kv = self._image_kv(images)
            return _likelihoods(self.model.model, self.model.params, *inputs, kv, longest=longest)

        return Likelihoods(*self._on_cores(score, ids, lengths, counts, images))

    def encode(self, clips: Sequence[np.ndarray]) -> list[Int[np.ndarray, "Q T"]]:
        """Returns the codes of clips, one by one on each core: no code depends on the batch."""
        return list(self._pool.map(lambda clip: self.model.encode_audio([clip])[0], clips))

    def _on_cores(
        self, compute: Callable[..., Any], *inputs: np.ndarray | None
    ) -> list[np.ndarray]:
        """Returns the arrays that `compute` makes of all rows; each core computes as many."""
        rows = next(len(x) for x in inputs if x is not None)
        parts = max(1, min(self._cores, rows // _ROWS_OF_A_CORE))
        while rows % parts:
            parts -= 1
        split = [[None] * parts if x is None else np.split(x, parts) for x in inputs]

        def made(*part: np.ndarray | None) -> list[np.ndarray]:
            return [self._here(x) for x in compute(*part)]

        if parts == 1:
            return made(*inputs)
        return [np.concatenate(x) for x in zip(*self._pool.map(made, *split), strict=True)]

    def _seen(self, images: Images, rows: int) -> tuple[Any, Any]:
        """Returns (keys and values, which rows see them).

        On a CPU rows without images are given zeros that none sees, once others had images: what they compute
        is the same, and a second program would take longer to compile than a benchmark's answers to attend.
        """
        kv = self._image_kv(images)
        if self._feed is not None or jax.default_backend() != "cpu":
            return kv, None
        blank = self._blank[1] if self._blank and self._blank[0] == rows else None
        if kv is None:
            kv = blank
        elif blank is None:
            self._blank = rows, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), kv)
        return kv, None if kv is None else np.full(rows, images is not None)

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


def _cores(model: eval_model.LoadedModel) -> int:
    """How many cores of a CPU may share a batch; 1 of other devices, and where devices share it."""
    devices = [jax.local_devices()[0]] if model.mesh is None else list(model.mesh.devices.flat)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    if len(devices) > 1 or devices[0].platform != "cpu" or size > _SHARED_BYTES:
        return 1
    # PJRT_NPROC bounds the threads of jax
    if bound := os.environ.get("PJRT_NPROC"):
        return int(bound)
    # macOS has no affinity
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
