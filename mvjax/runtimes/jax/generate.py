"""Whole conversations with the JAX model, in one scan over frames: recordings, or text-only rows.

A call fills the column that enters at the next call; `mvjax.runtimes.delays` has the table. Where that column
is known beforehand (the user's codes, the start, teacher forcing) it is given; elsewhere (UNGENERATED) the
model samples.

`config.stream` has the PyTorch column, too. `user_early` shows the user's streams one call earlier, which
costs their frame 0; without `first_step_forcing` the acoustic levels of call 0 are sampled. Those codes are
dropped either way (the column holds C), so only their logits tell the difference.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mvjax import tree, types
from mvjax.config import schema
from mvjax.nn import alignment, layers, xattn
from mvjax.nn import model as model_lib
from mvjax.runtimes import interface
from mvjax.runtimes.jax import draws, frames, kv_cache
from mvjax.runtimes.jax import weights as weights_lib

# so many rows XLA's CPU backend multiplies faster with the weights as they are stored
_MANY_ROWS = 8


class Generated(NamedTuple):
    """A whole conversation; everything is aligned with the undelayed frames.

    Ids are sampled or forced, logits float32.
    """

    text_ids: Int[Array, "B T"]
    audio_codes: Int[Array, "B Q T"]
    text_logits: Float[Array, "B T V"] | None  # unless not asked for
    # means over channels, 0 where no image is seen: over the last ten layers, and of each layer
    gates: Float[Array, "B T"]
    layer_gates: Float[Array, "B T L"]
    audio_logits: Float[Array, "B T Q C"] | None  # if asked for


class Written(NamedTuple):
    """Answers to text-only rows; gates are those of every step, the prompt's tokens first."""

    ids: Int[Array, "B max_tokens"]
    layer_gates: Float[Array, "B steps L"]


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "text_sampling",
        "audio_sampling",
        "with_text_logits",
        "with_audio_logits",
    ),
)
def generate(
    model: model_lib.VisionSpeech,
    params: tree.Tree,
    user_codes: Int[Array, "B U T"],
    kv: xattn.KeysValues | None = None,
    has_image: Bool[Array, "B"] | None = None,
    *,
    key: Key[Array, ""] | None = None,
    text_sampling: interface.Sampling = interface.GREEDY,
    audio_sampling: interface.Sampling = interface.GREEDY,
    image_on: Bool[Array, "B T"] | None = None,
    forced_text: Int[Array, "B T"] | None = None,
    forced_audio: Int[Array, "B Q T"] | None = None,
    with_text_logits: bool = True,
    with_audio_logits: bool = False,
) -> Generated:
    """Generates the assistant's side of a conversation of T frames.

    `user_codes` are undelayed, U = K - 1 - Q, and -1 where absent. Rows with `has_image` see their image in
    frames with `image_on` (None: in all); `kv` None is exactly plain Moshi. Forced ids, undelayed too, are
    taken in place of samples; UNGENERATED leaves the choice.

    Raises:
      ValueError: for a repetition penalty or a pad multiplier, which sessions alone have.
    """
    for how in (text_sampling, audio_sampling):
        if how.repetition_penalty != 1 or how.pad_multiplier:
            raise ValueError(
                f"generate: expected temperature and top_k alone, got {how}; open a session for the rest"
            )
    columns = _known_columns(model.config, user_codes, forced_text, forced_audio)
    has_image = _seen(model.config, has_image, image_on, (columns.shape[0], columns.shape[2] - 1))
    tokens, outs = _run(
        model.config,
        params,
        columns,
        kv,
        has_image,
        key=jax.random.key(0) if key is None else key,
        samplings=(text_sampling, audio_sampling),
        with_logits=(with_text_logits, with_audio_logits),
    )
    text_logits, gates, layer_gates, audio_logits = outs
    T, delays = user_codes.shape[2], model.config.delays[: 1 + model.config.codebooks_out]
    ids = _undelayed(tokens, delays, T)
    if text_logits is not None:
        text_logits = _undelayed(text_logits[:, :, None], delays[:1], T)[:, :, 0]
    return Generated(
        text_ids=ids[:, :, 0],
        audio_codes=ids[:, :, 1:].swapaxes(1, 2),
        text_logits=text_logits,
        gates=gates[:T].swapaxes(0, 1),
        layer_gates=layer_gates[:T].swapaxes(0, 1),
        audio_logits=None if audio_logits is None else _undelayed(audio_logits, delays[1:], T),
    )


def _run(
    config: schema.ModelConfig,
    params: tree.Tree,
    columns: Int[Array, "B K columns"],
    kv: xattn.KeysValues | None,
    has_image: Bool[Array, "B steps"],
    *,
    key: Key[Array, ""],
    samplings: tuple[interface.Sampling, interface.Sampling],
    with_logits: tuple[bool, bool],
) -> tuple[Int[Array, "steps B rows"], Any]:
    """Returns (text and audio ids, (text logits, gates, layers' gates, audio logits)) of each call."""
    B, _, steps = columns[:, :, 1:].shape
    own = slice(1, 1 + config.codebooks_out)
    weights = weights_lib.unstack(params, config, columns=B >= _MANY_ROWS)
    images = None if kv is None else kv_cache.images(config, kv, merged=False)

    def body(carry: Any, x: Any) -> Any:
        caches, column = carry
        s, known, seen, uniform = x
        caches, out = frames.backbone(config, weights, caches, column, s, images=images, sees=seen)
        text = _draw(out.text_logits, uniform[:, 0], samplings[0])
        text = frames.taken(text, known[:, 0])
        forced = known[:, own]
        if not config.stream.first_step_forcing:
            forced = jnp.where(forced == config.audio_vocab, types.UNGENERATED, forced)
        audio, audio_logits = frames.depth(
            config,
            weights.depth,
            out.z,
            text,
            lambda logits, level: _draw(logits, uniform[:, 1 + level], samplings[1]),
            forced=forced,
        )
        tokens = jnp.concatenate([text[:, None], frames.taken(audio, known[:, own])], axis=1)
        column = jnp.concatenate([tokens, known[:, own.stop :]], axis=1)
        text_logits, audio_logits = (
            logits if kept else None
            for logits, kept in zip((out.text_logits, audio_logits), with_logits)
        )
        return (caches, column), (tokens, (text_logits, out.gate, out.gates, audio_logits))

    caches = kv_cache.empty(config, rows=B, dtype=config.dtype, slots=steps, merged=False)
    start = (caches, columns[:, :, 0])
    uniform = jax.random.uniform(key, (steps, B, 1 + config.codebooks_out))
    xs = (
        jnp.arange(steps, dtype=jnp.int32),
        jnp.moveaxis(columns[:, :, 1:], 2, 0),
        jnp.moveaxis(has_image, 1, 0),
        uniform,
    )
    return jax.lax.scan(body, start, xs)[1]


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
) -> Written:
    """Continues text-only rows by greedy decoding, each right after its own prompt.

    Prompts are ids, left-aligned, without the initial token; what lies beyond their lengths is ignored. From
    the first of `stop_ids` on, the ids returned are -1; when all rows have stopped, so does the loop, and
    later gates are 0.
    """
    config = model.config
    B, P = prompts.shape
    steps = P + max_tokens
    index = jnp.arange(steps, dtype=jnp.int32)
    known = jnp.pad(prompts, ((0, 0), (0, max_tokens)))
    known = jnp.where(index[None] < lengths[:, None], known, types.UNGENERATED)
    absent = jnp.full((B, config.codebooks - 1, steps), types.ZERO_TOKEN, jnp.int32)
    columns = alignment.delay_codes(jnp.concatenate([known[:, None], absent], axis=1), config)
    has_image = _seen(config, has_image, None, (B, steps))
    weights = weights_lib.unstack(params, config, columns=B >= _MANY_ROWS)
    images = None if kv is None else kv_cache.images(config, kv, merged=False)

    def body(carry: Any) -> Any:
        s, caches, ids, stopped, out_ids, out_gates = carry
        column = columns[:, :, s].at[:, 0].set(ids)
        caches, out = frames.backbone(
            config, weights, caches, column, s, images=images, sees=has_image[:, s]
        )
        ids = frames.taken(layers.argmax(out.text_logits), known[:, s])
        stops = jnp.isin(ids, jnp.array(stop_ids, jnp.int32)) & (s >= lengths)
        stopped = stopped | stops | (s + 1 >= lengths + max_tokens)
        return s + 1, caches, ids, stopped, out_ids.at[s].set(ids), out_gates.at[s].set(out.gates)

    start = (
        jnp.int32(0),
        kv_cache.empty(config, rows=B, dtype=config.dtype, slots=steps, merged=False),
        columns[:, 0, 0],
        jnp.zeros(B, bool),
        jnp.full((steps, B), types.ZERO_TOKEN, jnp.int32),
        jnp.zeros((steps, B, config.backbone.layers), jnp.float32),
    )
    *_, ids, gates = jax.lax.while_loop(lambda carry: ~jnp.all(carry[3]), body, start)
    after = lengths[:, None] + jnp.arange(max_tokens, dtype=jnp.int32)[None]
    ids = jnp.take_along_axis(jnp.moveaxis(ids, 0, 1), after, axis=1)
    stopped = jnp.cumsum(jnp.isin(ids, jnp.array(stop_ids, jnp.int32)), axis=1) > 0
    return Written(jnp.where(stopped, types.ZERO_TOKEN, ids), jnp.moveaxis(gates, 0, 1))


def _draw(
    logits: Float[Array, "B vocabulary"], uniform: Float[Array, "B"], how: interface.Sampling
) -> Int[Array, "B"]:
    if how.temperature == 0:  # no branch that draws is compiled
        return layers.argmax(logits)
    temperature = jnp.full(len(logits), how.temperature, jnp.float32)
    return draws.choose(logits, uniform, temperature, jnp.full(len(logits), how.top_k, jnp.int32))


@functools.partial(jax.jit, static_argnames="model")
def image_kv(
    model: model_lib.VisionSpeech, params: tree.Tree, pixels: Float[Array, "B height width 3"]
) -> xattn.KeysValues:
    """Returns the keys and values of images with pixels in [-1, 1], for `generate` and sessions alike."""
    kv = model.apply({"params": params}, pixels, method="image_kv")
    assert isinstance(kv, xattn.KeysValues)
    return kv


def _known_columns(
    config: schema.ModelConfig,
    user_codes: Int[Array, "B U T"],
    forced_text: Int[Array, "B T"] | None,
    forced_audio: Int[Array, "B Q T"] | None,
) -> Int[Array, "B K columns"]:
    """Returns every column beforehand, UNGENERATED where the model samples.

    There are as many frames more as the largest delay, so that all levels of frame T - 1 are generated.
    """
    B, _, T = user_codes.shape
    own = jnp.full((B, 1 + config.codebooks_out, T), types.UNGENERATED, jnp.int32)
    if forced_text is not None:
        own = own.at[:, 0].set(forced_text)
    if forced_audio is not None:
        own = own.at[:, 1:].set(forced_audio)
    absent = jnp.all(own == types.ZERO_TOKEN, axis=-1, keepdims=True)
    end = jnp.where(absent, types.ZERO_TOKEN, types.UNGENERATED)
    lag = max(config.delays)
    own = jnp.concatenate([own, jnp.tile(end, (1, 1, lag))], axis=2)
    ends = ((0, 0), (0, 0), (0, lag))
    user = jnp.pad(user_codes, ends, constant_values=types.ZERO_TOKEN)
    columns = alignment.delay_codes(jnp.concatenate([own, user], axis=1), config)
    return _user_early(columns, config) if config.stream.user_early else columns


def _user_early(
    columns: Int[Array, "B K columns"], config: schema.ModelConfig
) -> Int[Array, "B K columns"]:
    """Moves the user's streams one call forward, over the first code but not over the start."""
    users = slice(1 + config.codebooks_out, None)
    rows = columns[:, users]
    moved = jnp.pad(rows[:, :, 1:], ((0, 0), (0, 0), (0, 1)), constant_values=types.ZERO_TOKEN)
    delays = jnp.array(config.delays[users], jnp.int32)
    starting = jnp.arange(rows.shape[2], dtype=jnp.int32)[None] <= delays[:, None]
    return columns.at[:, users].set(jnp.where(starting[None], rows[:, :, :1], moved))


def _undelayed(x: Array, delays: tuple[int, ...], frames: int) -> Array:
    """Turns what each call generated [steps, B, stream, ...] into frames [B, T, stream, ...]."""
    moved = [x[d : d + frames, :, k] for k, d in enumerate(delays)]
    return jnp.stack(moved, axis=2).swapaxes(0, 1)


def _seen(
    config: schema.ModelConfig,
    has_image: Bool[Array, "B"] | None,
    image_on: Bool[Array, "B T"] | None,
    shape: tuple[int, int],
) -> Bool[Array, "B steps"]:
    """Returns which rows see their image at which step; the last frame's answer holds on."""
    B, steps = shape
    scope = config.cross_attention.scope(jnp.arange(steps, dtype=jnp.int32))
    seen = jnp.broadcast_to(scope[None], (B, steps))
    if image_on is not None:
        T = image_on.shape[1]
        seen = seen & jnp.pad(image_on, ((0, 0), (0, steps - T)), mode="edge")
    return seen if has_image is None else seen & has_image[:, None]
