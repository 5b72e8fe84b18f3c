"""One frame of a batch of conversations in JAX: backbone with KV cache, text, depth transformer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mvjax import tree, types
from mvjax.nn import attention, xattn
from mvjax.nn import model as model_lib
from mvjax.runtimes import interface

SamplingPair = tuple[interface.Sampling, interface.Sampling]  # of text, of audio


class Stepped(NamedTuple):
    """The model after one more frame; ids are sampled or forced, logits float32."""

    cache: attention.Cache
    text: Int[Array, "B"]
    audio: Int[Array, "B Q"]
    text_logits: Float[Array, "B V"]
    audio_logits: Float[Array, "B Q C"]
    gate: Float[Array, "B"]  # gate activation, the mean over channels and the last ten layers
    layers: LayerProbes | None  # with probes


class LayerProbes(NamedTuple):
    """What each layer of the backbone computed."""

    hidden: Float[Array, "L B T D"]  # the residual stream after the layer
    gates: Float[Array, "L B T"]  # gate activation, the mean over channels


def step(
    model: model_lib.VisionSpeech,
    params: tree.Tree,
    cache: attention.Cache,
    column: Int[Array, "B K"],
    *,
    forced_text: Int[Array, "B"],
    forced_audio: Int[Array, "B Q"],
    kv: xattn.KeysValues | None,
    has_image: Bool[Array, "B"] | None,
    key: Key[Array, ""],
    samplings: SamplingPair,
    probes: bool = False,
) -> Stepped:
    """Runs one frame, whose delayed ids are `column`.

    The depth transformer is teacher-forced with `forced_audio`; where that or `forced_text` is UNGENERATED,
    the choice is the model's. Rows with `has_image` (None: all) see their image; `kv` None is plain Moshi.
    """
    text_sampling, audio_sampling = samplings
    key_text, key_audio = jax.random.split(key)
    stepped, layers = probed(
        model, params, cache, column, kv, has_image, method="step", probes=probes
    )
    cache, z, text_logits, gate = stepped
    text = sample(text_logits, key_text, text_sampling)
    text = jnp.where(forced_text == types.UNGENERATED, text, forced_text)
    generated: Any = model.apply(
        {"params": params},
        z,
        text,
        lambda logits, level, level_key: sample(logits, level_key, audio_sampling),
        key_audio,
        wanted=forced_audio,
        method="depth_generate",
    )
    audio, audio_logits = generated
    return Stepped(cache, text, audio, text_logits, audio_logits, gate, layers)


def sample(
    logits: Float[Array, "B vocabulary"], key: Key[Array, ""], sampling: interface.Sampling
) -> Int[Array, "B"]:
    """Returns one id per row: the argmax (greedy decoding), or a draw from softmax(logits / temperature)."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    k = logits.shape[-1]
    largest, ids = jax.lax.top_k(logits, min(k, sampling.top_k or k))
    drawn = jax.random.categorical(key, largest / sampling.temperature)
    return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)


def probed(
    model: model_lib.VisionSpeech, params: tree.Tree, *args: Any, method: str, probes: bool = True
) -> tuple[Any, LayerProbes | None]:
    """Returns (what a method of the model returns, what each layer computed on the way)."""
    variables = {"params": params}
    if not probes:
        return model.apply(variables, *args, method=method), None
    out: Any = model.apply(variables, *args, method=method, mutable=["intermediates"])
    returned, sown = out
    blocks = sown["intermediates"]["backbone"]["blocks"]
    return returned, LayerProbes(blocks["hidden"][0], blocks["gate_activation"][0])
