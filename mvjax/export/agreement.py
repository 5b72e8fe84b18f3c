"""How far what a real-time runtime said is from the JAX model, in two comparisons.

*Greedy*: JAX talks on its own to the same image and user, and tokens are compared. *Told*: JAX runs once
over the whole sequence with the runtime's own tokens, and every text and audio logit, gate and layer of
every frame is compared.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import backbone, xattn
from mvjax.nn import model as model_lib
from mvjax.weights import lazy

_ENGINE = "mvjax.runtimes.jax.generate"  # by name, since `weights` comes before `stream`


class Told(NamedTuple):
    """One side of the second comparison, one entry a frame."""

    text_logits: Float[np.ndarray, "T V"]
    audio_logits: Float[np.ndarray, "T Q C"]
    gates: Float[np.ndarray, "T L"]
    hidden: Float[np.ndarray, "T L D"]


def compare(
    params: Mapping[str, lazy.LazyTensor],
    model: schema.ModelConfig,
    *,
    pixels: Float[np.ndarray, "1 height width 3"],
    user: Int[np.ndarray, "U T"],
    outs: list[Any],
) -> dict[str, Any]:
    """Returns errors, agreement and, layer by layer, the residual stream.

    Args:
      params: {path: leaf} of the JAX model, which are read one after the other.
      model: its config, in float32.
      pixels: the image that the runtime was shown.
      user: the codes that it heard, undelayed.
      outs: what its steps returned.
    """
    exact = tree.unflatten({p: jnp.asarray(x[()], jnp.float32) for p, x in params.items()})
    codes = np.concatenate([_spoken(outs, model), user])[None].astype(np.int32)
    with jax.default_matmul_precision("highest"):
        shown = jnp.asarray(pixels, jnp.float32)
        kv = _run(exact, shown, config=model, method="look")
        greedy = _compare_greedy(exact, model, kv, user, outs)
        told = _told_by_jax(exact, model, kv, codes)
    found = Told(*(np.stack([getattr(out, name) for out in outs]) for name in Told._fields))
    return {**_errors(told, found), **greedy}


def _spoken(outs: list[Any], config: schema.ModelConfig) -> Int[np.ndarray, "rows T"]:
    """Returns the runtime's own text and audio as undelayed rows; the unknown end is zeros."""
    T, Q = len(outs), config.codebooks_out
    rows = np.zeros((1 + Q, T), np.int32)
    rows[0] = [out.text_token for out in outs]
    for q, delay in enumerate(config.delays[1 : 1 + Q]):
        rows[1 + q, : T - delay] = [out.audio_tokens[q] for out in outs[delay:]]
    return rows


def _told_by_jax(
    params: tree.Tree,
    config: schema.ModelConfig,
    kv: xattn.KeysValues,
    codes: Int[np.ndarray, "1 K T"],
) -> Told:
    """Runs the JAX model over the whole sequence, in the training form."""
    run = functools.partial(_run, params, config=config)
    columns = model_lib.delay_codes(jnp.asarray(codes), config)
    entering, leaving = columns[:, :, :-1], columns[:, :, 1:]
    z, gate_means = run(entering, kv, method="hidden")
    said = jnp.moveaxis(leaving[:, 1 : config.codebooks_out], 1, 2)
    return Told(
        text_logits=np.asarray(run(z, method="text_logits")[0]),
        audio_logits=np.asarray(run(z, leaving[:, 0], said, method="depth_logits")[0]),
        gates=np.asarray(gate_means[:, 0].T),
        hidden=np.asarray(_residual_streams(params, config, entering, kv)),
    )


@functools.partial(jax.jit, static_argnames=("config", "method"))
def _run(params: tree.Tree, *args: Any, config: schema.ModelConfig, method: str) -> Any:
    return model_lib.VisionSpeech(config).apply({"params": params}, *args, method=method)


@functools.partial(jax.jit, static_argnames="config")
def _block(
    params: tree.Tree,
    x: Float[Array, "1 T D"],
    layer: Int[Array, ""],
    kv: xattn.KeysValues,
    shared: xattn.Shared,
    *,
    config: schema.ModelConfig,
) -> Float[Array, "1 T D"]:
    scope = config.cross_attention.scope
    seen = scope(jnp.arange(x.shape[1], dtype=jnp.int32))[None]
    block = backbone.Block(config)
    (y, _), _ = block.apply({"params": params}, (x, None), layer, kv, shared, seen)
    return y


def _residual_streams(
    params: tree.Tree,
    config: schema.ModelConfig,
    columns: Int[Array, "1 K T"],
    kv: xattn.KeysValues,
) -> Float[Array, "T L D"]:
    """Returns the residual stream after each layer, by running the blocks one by one."""
    shared = xattn.Shared(
        kernels={name: leaf["kernel"] for name, leaf in params["xa"].items()},
        gate=tree.flatten(params["gate"]) if "gate" in params else None,
    )
    own = backbone.Backbone(config)
    x = own.apply({"params": params["backbone"]}, columns, method="embed")
    blocks, streams = backbone.spread(params["backbone"]["blocks"], config), []
    for layer in range(config.backbone.layers):
        of_layer = jax.tree.map(lambda leaf: leaf[layer], blocks)  # noqa: B023
        x = _block(of_layer, x, jnp.int32(layer), kv, shared, config=config)
        streams.append(x[0])
    return jnp.stack(streams, axis=1)


def _compare_greedy(
    params: tree.Tree,
    config: schema.ModelConfig,
    kv: xattn.KeysValues,
    user_codes: Int[np.ndarray, "U T"],
    outs: list[Any],
) -> dict[str, Any]:
    """Lets the JAX engine talk on its own; compares until the first call whose tokens differ."""
    engine = importlib.import_module(_ENGINE)
    model = model_lib.VisionSpeech(config)
    users = jnp.asarray(user_codes, jnp.int32)[None]
    own = engine.generate(model, params, users, kv, with_audio_logits=True)
    ids, codes, text_logits, gates, audio_logits = (np.asarray(x[0]) for x in own)
    T, Q = len(outs), config.codebooks_out
    text = np.asarray([out.text_token for out in outs])
    audio = np.stack([out.audio_tokens for out in outs])
    error = np.zeros((T, Q))
    same = np.ones((T, 1 + Q), bool)
    same[:, 0] = text == ids
    for q, d in enumerate(config.delays[1 : 1 + Q]):
        # level q of call s belongs to frame s - d; before frame 0 it is nobody's
        same[d:, 1 + q] = audio[d:, q] == codes[q, : T - d]
        found = np.stack([out.audio_logits[q] for out in outs[d:]])
        error[d:, q] = np.abs(audio_logits[: T - d, q] - found).max(axis=-1)
    differing = np.flatnonzero(~same.all(axis=1))
    equal = int(differing[0]) if len(differing) else T
    text_error = [np.abs(text_logits[s] - outs[s].text_logits).max() for s in range(T)]
    gate_error = [abs(gates[s] - outs[s].gate) for s in range(T)]
    agreeing = slice(0, max(equal, 1))
    return {
        "greedy_frames_equal": equal,
        "greedy": {
            "max_abs_text_logit_error": float(np.max(text_error[agreeing])),
            "max_abs_audio_logit_error": float(error[agreeing].max()),
            "max_abs_gate_error": float(np.max(gate_error[agreeing])),
        },
    }


def _errors(told: Told, found: Told) -> dict[str, Any]:
    """Returns the largest absolute difference of each kind, the mean of the logits, agreement."""
    error = {name: np.abs(a - b) for name, a, b in zip(Told._fields, told, found)}
    text, audio = error["text_logits"], error["audio_logits"]
    return {
        "max_abs_logit_error": float(max(text.max(), audio.max())),
        "max_abs_text_logit_error": float(text.max()),
        "max_abs_audio_logit_error": float(audio.max()),
        "mean_abs_logit_error": float((text.sum() + audio.sum()) / (text.size + audio.size)),
        "max_abs_gate_error": float(error["gates"].max()),
        "text_agreement": _agreement(told.text_logits, found.text_logits),
        "audio_agreement": _agreement(told.audio_logits, found.audio_logits),
        "layers": [
            {
                "max_abs_residual_error": float(error["hidden"][:, layer].max()),
                "max_abs_residual": float(np.abs(told.hidden[:, layer]).max()),
                "max_abs_gate_error": float(error["gates"][:, layer].max()),
                "mean_gate": float(told.gates[:, layer].mean()),
            }
            for layer in range(told.gates.shape[1])
        ],
    }


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of greedy choices that are the same, after the same past."""
    return float(np.mean(a.argmax(axis=-1) == b.argmax(axis=-1)))
