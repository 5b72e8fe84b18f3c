"""Alignment of streams: codes delayed as they enter the model, logits undelayed as they leave it."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mvjax import types
from mvjax.config import schema


def delay_codes(
    codes: Int[Array, "B rows T"], config: schema.ModelConfig
) -> Int[Array, "B rows columns"]:
    """Moves stream k right by delays[k] frames, after one initial column; columns = T + 1.

    A stream starts with the id V (text) or C (audio). Where it is absent throughout (all -1), it starts as
    `stream.absent_start` says: like the others, or with -1, so that it adds nothing at all.

    Raises:
      ValueError: unless there is one row (text) or one for every stream.
    Source: moshi/models/lm.py, `LMModel.forward`.
    """
    rows, T = codes.shape[1:]
    if rows not in (1, config.codebooks):
        raise ValueError(
            f"codes: expected 1 row (text) or {config.codebooks} (config.delays), got {rows}"
        )
    initial = [config.text_vocab, *[config.audio_vocab] * (rows - 1)]
    start = jnp.tile(jnp.array(initial, jnp.int32)[None], (codes.shape[0], 1))
    if config.stream.absent_start == "nothing":
        start = jnp.where(jnp.all(codes == types.ZERO_TOKEN, axis=-1), types.ZERO_TOKEN, start)
    filled = [jnp.tile(start[:, k, None], (1, config.delays[k] + 1)) for k in range(rows)]
    moved = [jnp.concatenate([f, codes[:, k]], axis=-1)[:, : T + 1] for k, f in enumerate(filled)]
    return jnp.stack(moved, axis=1)


def undelay(
    logits: Float[Array, "B T levels C"], delays: Sequence[int]
) -> Float[Array, "B T levels C"]:
    """Moves level k left by delays[k] frames; zeros come in at the end."""
    T = logits.shape[1]
    moved = [
        jnp.pad(logits[:, min(delay, T) :, k], ((0, 0), (0, min(delay, T)), (0, 0)))
        for k, delay in enumerate(delays)
    ]
    return jnp.stack(moved, axis=2)
