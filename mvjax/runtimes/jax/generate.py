"""Conversation with the JAX model: a whole recording, or a text-only row, in one scan over frames.

At call s stream k (delay d) enters as its code of frame s - 1 - d, or as its initial id before the
start; this is the training alignment, and the Rust/MLX column of reference section 5.2:

    call s   text   semantic   acoustic (d = 1)    the depformer is told, for acoustic levels
    0        V      C          C                   C (section 5.3)
    1        w_0    a_0, u_0   C                   what it chose
    2        w_1    a_1, u_1   a_0, u_0            what it chose

So a call fills the column that enters at the next call. Where that column is known beforehand (the
user's codes, the start, teacher forcing) it is `wanted`; elsewhere (UNGENERATED) the model chooses.

`config.stream` has the PyTorch column too. `user_early` shows the user's streams one call earlier, which
costs their frame 0; without `first_step_forcing` the acoustic levels of call 0 are told what was chosen.
Those codes are dropped either way (the column holds C), so only their logits tell the difference.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mvjax import tree, types
from mvjax.config import schema
from mvjax.nn import attention, xattn
from mvjax.nn import model as model_lib
from mvjax.runtimes.jax import sampling

GREEDY = sampling.Greedy()


class Generated(NamedTuple):
    """A whole conversation; everything is aligned with the undelayed frames.

    Attributes:
      text_ids: chosen or forced.
      audio_codes: the assistant's, chosen or forced.
      text_logits: float32.
      gates: mean gate opening over channels and the last ten layers; 0 where no image is seen.
      audio_logits: float32, if asked for.
    """

    text_ids: Int[Array, "B T"]
    audio_codes: Int[Array, "B Q T"]
    text_logits: Float[Array, "B T V"]
    gates: Float[Array, "B T"]
    audio_logits: Float[Array, "B T Q C"] | None


@functools.partial(
    jax.jit, static_argnames=("model", "text_sampler", "audio_sampler", "with_audio_logits")
)
def generate(
    model: model_lib.VisionSpeech,
    params: tree.Tree,
    user_codes: Int[Array, "B U T"],
    kv: xattn.KeysValues | None = None,
    has_image: Bool[Array, "B"] | None = None,
    *,
    key: Key[Array, ""] | None = None,
    text_sampler: sampling.Sampler = GREEDY,
    audio_sampler: sampling.Sampler = GREEDY,
    image_on: Bool[Array, "B T"] | None = None,
    forced_text: Int[Array, "B T"] | None = None,
    forced_audio: Int[Array, "B Q T"] | None = None,
    with_audio_logits: bool = False,
) -> Generated:
    """Lets the assistant listen and talk for T frames.

    Args:
      model: made from the config of `params`.
      params: the whole tree.
      user_codes: undelayed, U = K - 1 - Q; -1 where absent.
      kv: `model.apply({"params": params}, pixels, method="look")`; None is exactly plain Moshi.
      has_image: rows that see their image; None: all.
      key: for samplers that draw.
      text_sampler: picks text.
      audio_sampler: picks codes.
      image_on: frames in which the image is seen; None: all.
      forced_text: ids that the assistant is made to write; UNGENERATED leaves the choice.
      forced_audio: undelayed codes that it is made to say; UNGENERATED leaves the choice.
      with_audio_logits: return them too.
    """
    m = model.config
    B, _, T = user_codes.shape
    columns = _wanted_columns(m, user_codes, forced_text, forced_audio)
    steps = columns.shape[2] - 1
    seen = _seen(has_image, image_on, (B, steps))
    keys = jax.random.split(jax.random.key(0) if key is None else key, steps)
    samplers = (text_sampler, audio_sampler)

    def body(carry: Any, x: Any) -> Any:
        cache, column = carry
        wanted, on, step_key = x
        out = advance(
            model,
            params,
            cache,
            column,
            wanted,
            kv=kv,
            seen=on,
            key=step_key,
            samplers=samplers,
        )
        kept = out.audio_logits if with_audio_logits else None
        return (out.cache, out.column), (out.column, out.text_logits, out.gate, kept)

    cache = model.init_cache(B, max_frames=steps)
    start = (cache, columns[:, :, 0])
    xs = (jnp.moveaxis(columns[:, :, 1:], 2, 0), jnp.moveaxis(seen, 1, 0), keys)
    _, (said, text_logits, gates, audio_logits) = jax.lax.scan(body, start, xs)
    delays = m.delays[: 1 + m.codebooks_out]
    ids = _aligned(said, delays, T)
    return Generated(
        text_ids=ids[:, :, 0],
        audio_codes=ids[:, :, 1:].swapaxes(1, 2),
        text_logits=_aligned(text_logits[:, :, None], delays[:1], T)[:, :, 0],
        gates=gates[:T].swapaxes(0, 1),
        audio_logits=None if audio_logits is None else _aligned(audio_logits, delays[1:], T),
    )


@functools.partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids"))
def generate_text(
    model: model_lib.VisionSpeech,
    params: tree.Tree,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, "B"],
    kv: xattn.KeysValues | None = None,
    has_image: Bool[Array, "B"] | None = None,
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...] = (),
) -> Int[Array, "B max_tokens"]:
    """Continues text-only rows greedily, each right after its own prompt.

    Args:
      model: made from the config of `params`.
      params: the whole tree.
      prompts: ids, left-aligned, without the initial token; the rest is ignored.
      lengths: of the prompts.
      kv: of the images; None: no images.
      has_image: rows that see their image; None: all.
      max_tokens: ids to return.
      stop_ids: from the first of these on a row is -1.

    Returns:
      The continuation, without the prompt; -1 after its end.
    """
    B, P = prompts.shape
    steps = P + max_tokens
    index = jnp.arange(steps, dtype=jnp.int32)
    wanted = jnp.pad(prompts, ((0, 0), (0, max_tokens)))
    wanted = jnp.where(index[None] < lengths[:, None], wanted, types.UNGENERATED)

    def body(carry: Any, ids: Int[Array, "B"]) -> Any:
        cache, column = carry
        out: Any = model.apply({"params": params}, cache, column, kv, has_image, method="step")
        cache, _, logits, _ = out
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        told = jnp.where(ids == types.UNGENERATED, chosen, ids)
        return (cache, told[:, None]), told

    cache = model.init_cache(B, max_frames=steps)
    start = (cache, jnp.full((B, 1), model.config.text_vocab, jnp.int32))
    _, told = jax.lax.scan(body, start, jnp.moveaxis(wanted, 1, 0))
    after = lengths[:, None] + jnp.arange(max_tokens, dtype=jnp.int32)[None]
    ids = jnp.take_along_axis(jnp.moveaxis(told, 0, 1), after, axis=1)
    stopped = jnp.cumsum(jnp.isin(ids, jnp.array(stop_ids, jnp.int32)), axis=1) > 0
    return jnp.where(stopped, types.ZERO_TOKEN, ids)


class Advanced(NamedTuple):
    """The model after one more frame.

    Attributes:
      cache: with this frame in it.
      column: what enters at the next call.
      text_logits: float32.
      audio_logits: float32.
      gate: mean over channels and the last ten layers.
    """

    cache: attention.Cache
    column: Int[Array, "B K"]
    text_logits: Float[Array, "B V"]
    audio_logits: Float[Array, "B Q C"]
    gate: Float[Array, "B"]


def advance(
    model: model_lib.VisionSpeech,
    params: tree.Tree,
    cache: attention.Cache,
    column: Int[Array, "B K"],
    wanted: Int[Array, "B K"],
    *,
    kv: xattn.KeysValues | None,
    seen: Bool[Array, "B"],
    key: Key[Array, ""],
    samplers: tuple[sampling.Sampler, sampling.Sampler],
) -> Advanced:
    """Runs one frame; `wanted` is the next column, with UNGENERATED where the model chooses."""
    m = model.config
    own = slice(1, 1 + m.codebooks_out)
    told = wanted[:, own]
    if not m.stream.first_step_forcing:
        told = jnp.where(told == m.audio_vocab, types.UNGENERATED, told)
    text_sampler, audio_sampler = samplers
    key_text, key_audio = jax.random.split(key)
    variables = {"params": params}
    stepped: Any = model.apply(variables, cache, column, kv, seen, method="step")
    cache, z, text_logits, gate = stepped
    text = text_sampler(text_logits, key_text)
    text = jnp.where(wanted[:, 0] == types.UNGENERATED, text, wanted[:, 0])
    spoken: Any = model.apply(
        variables,
        z,
        text,
        lambda logits, level, level_key: audio_sampler(logits, level_key),
        key_audio,
        wanted=told,
        method="depth_generate",
    )
    codes, audio_logits = spoken
    codes = jnp.where(wanted[:, own] == types.UNGENERATED, codes, wanted[:, own])
    column = jnp.concatenate([text[:, None], codes, wanted[:, own.stop :]], axis=1)
    return Advanced(cache, column, text_logits, audio_logits, gate)


def _wanted_columns(
    config: schema.ModelConfig,
    user_codes: Int[Array, "B U T"],
    forced_text: Int[Array, "B T"] | None,
    forced_audio: Int[Array, "B Q T"] | None,
) -> Int[Array, "B K columns"]:
    """Returns every column beforehand, UNGENERATED where the model chooses.

    There are as many frames more as the largest delay, so that all levels of frame T - 1 are said.
    """
    B, _, T = user_codes.shape
    free = types.UNGENERATED
    if forced_text is None:
        forced_text = jnp.full((B, T), free, jnp.int32)
    if forced_audio is None:
        forced_audio = jnp.full((B, config.codebooks_out, T), free, jnp.int32)
    own = jnp.concatenate([forced_text[:, None], forced_audio], axis=1)
    absent = jnp.all(own == types.ZERO_TOKEN, axis=-1, keepdims=True)
    lag = max(config.delays)
    own_end = jnp.tile(jnp.where(absent, types.ZERO_TOKEN, free), (1, 1, lag))
    user_end = jnp.full((*user_codes.shape[:2], lag), types.ZERO_TOKEN, jnp.int32)
    own = jnp.concatenate([own, own_end], axis=2)
    user = jnp.concatenate([user_codes, user_end], axis=2)
    columns = model_lib.delay_codes(jnp.concatenate([own, user], axis=1), config)
    return _hear_early(columns, config) if config.stream.user_early else columns


def _hear_early(
    columns: Int[Array, "B K columns"], config: schema.ModelConfig
) -> Int[Array, "B K columns"]:
    """Moves the user's streams one call forward, over the first code but not over the start."""
    users = slice(1 + config.codebooks_out, None)
    rows = columns[:, users]
    moved = jnp.pad(rows[:, :, 1:], ((0, 0), (0, 0), (0, 1)), constant_values=types.ZERO_TOKEN)
    delays = jnp.array(config.delays[users], jnp.int32)
    starting = jnp.arange(rows.shape[2], dtype=jnp.int32)[None] <= delays[:, None]
    return columns.at[:, users].set(jnp.where(starting[None], rows[:, :, :1], moved))


def _aligned(x: Array, delays: tuple[int, ...], frames: int) -> Array:
    """Turns what was said call by call [steps, B, stream, ...] into frames [B, T, stream, ...]."""
    moved = [x[d : d + frames, :, k] for k, d in enumerate(delays)]
    return jnp.stack(moved, axis=2).swapaxes(0, 1)


def _seen(
    has_image: Bool[Array, "B"] | None,
    image_on: Bool[Array, "B T"] | None,
    shape: tuple[int, int],
) -> Bool[Array, "B steps"]:
    """Returns which rows see their image at which step; the last frame's answer holds on."""
    B, steps = shape
    seen = jnp.ones((B, steps), bool)
    if image_on is not None:
        T = image_on.shape[1]
        seen = jnp.pad(image_on, ((0, 0), (0, steps - T)), mode="edge")
    return seen if has_image is None else seen & has_image[:, None]
