"""How far a real-time runtime is from the JAX model, in two comparisons.

*Greedy decoding*: the JAX runtime talks on its own to the same image and user, and tokens are compared.
*Teacher forcing*: JAX scores the runtime's own tokens over the whole sequence, in the training form, and
every text and audio logit, gate and layer of every frame is compared.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import alignment, xattn
from mvjax.nn import model as model_lib
from mvjax.runtimes import interface
from mvjax.runtimes.jax import generate
from mvjax.runtimes.jax import model as jax_model
from mvjax.weights import lazy


class TeacherForced(NamedTuple):
    """Logits, gates and layers of a sequence of tokens, one entry a frame; fields as `interface.Probes`."""

    text_logits: Float[np.ndarray, "T V"]
    audio_logits: Float[np.ndarray, "T Q C"]
    gates: Float[np.ndarray, "T L"]
    hidden: Float[np.ndarray, "T L D"]


class _Layers(NamedTuple):
    hidden: Float[Array, "L B T D"]  # the residual stream after the layer
    gates: Float[Array, "L B T"]  # gate activation, the mean over channels


def talk(
    model: interface.Model,
    pixels: Float[np.ndarray, "1 height width 3"],
    user: Int[np.ndarray, "U T"],
) -> list[interface.Frame]:
    """Returns a runtime's frames of a conversation about an image, by greedy decoding, with probes."""
    session = model.session(model.encode_image(pixels), probes=True)
    return [session.step(codes) for codes in user.T]


def apart(
    model: interface.Model,
    pixels: Float[np.ndarray, "1 height width 3"],
    user: Int[np.ndarray, "U T"],
    frames: Sequence[interface.Frame],
) -> dict[str, Any]:
    """Returns how far a runtime is from `frames` that `talk` returned of another, forced to say the same."""
    session = model.session(model.encode_image(pixels), probes=True)
    others = [
        session.step(codes, text=frame.text_token, audio=frame.audio_tokens)
        for codes, frame in zip(user.T, frames, strict=True)
    ]
    return _errors(_stacked(frames), _stacked(others))


def compare(
    params: Mapping[str, lazy.LazyTensor],
    model: schema.ModelConfig,
    *,
    pixels: Float[np.ndarray, "1 height width 3"],
    user: Int[np.ndarray, "U T"],
    frames: Sequence[interface.Frame],
) -> dict[str, Any]:
    """Returns errors, agreement and, layer by layer, the residual stream.

    `params` and `model` are the JAX model's, in float32; `frames` is what `talk` returned of the runtime, for
    the same image and undelayed codes of the user.
    """
    codes = np.concatenate([_own_tokens(frames, model), user])[None].astype(np.int32)
    with jax.default_matmul_precision("highest"):
        exact = tree.unflatten({p: jnp.asarray(x[()], jnp.float32) for p, x in params.items()})
        seen = jax_model.image_params(exact, model)
        kv = generate.image_kv(model_lib.VisionSpeech(model), seen, pixels)
        scored = _teacher_forced(exact, model, kv, codes)
        del exact, seen  # one whole model at a time
        lazily = {path: lazy.cast(leaf, np.float32) for path, leaf in params.items()}
        runtime = jax_model.JaxModel(model, tree.unflatten(lazily))
        greedy = _compare_greedy(talk(runtime, pixels, user), frames)
    return {**_errors(scored, _stacked(frames)), **greedy}


def _stacked(frames: Sequence[interface.Frame]) -> TeacherForced:
    """Returns the probes of a conversation."""
    probes = [frame.probes for frame in frames]
    return TeacherForced(
        *(np.stack([getattr(p, n) for p in probes]) for n in TeacherForced._fields)
    )


def _own_tokens(
    frames: Sequence[interface.Frame], config: schema.ModelConfig
) -> Int[np.ndarray, "rows T"]:
    """Returns the runtime's own text and audio as undelayed rows; the unknown end is zeros."""
    T, Q = len(frames), config.codebooks_out
    rows = np.zeros((1 + Q, T), np.int32)
    rows[0] = [frame.text_token for frame in frames]
    for q, delay in enumerate(config.delays[1 : 1 + Q]):
        rows[1 + q, : T - delay] = [frame.audio_tokens[q] for frame in frames[delay:]]
    return rows


def _teacher_forced(
    params: tree.Tree,
    config: schema.ModelConfig,
    kv: xattn.KeysValues,
    codes: Int[np.ndarray, "1 K T"],
) -> TeacherForced:
    """Runs the JAX model over the whole sequence, in the training form."""
    run = functools.partial(_run, params, config=config)
    columns = alignment.delay_codes(jnp.asarray(codes), config)
    entering, leaving = columns[:, :, :-1], columns[:, :, 1:]
    (z, _), layers = run(entering, kv, method="hidden")
    audio = jnp.moveaxis(leaving[:, 1 : config.codebooks_out], 1, 2)
    text_logits, _ = run(z, method="text_logits", probes=False)
    audio_logits, _ = run(z, leaving[:, 0], audio, method="depth_logits", probes=False)
    return TeacherForced(
        text_logits=np.asarray(text_logits[0]),
        audio_logits=np.asarray(audio_logits[0]),
        gates=np.asarray(layers.gates[:, 0].T),
        hidden=np.asarray(layers.hidden[:, 0].swapaxes(0, 1)),
    )


@functools.partial(jax.jit, static_argnames=("config", "method", "probes"))
def _run(
    params: tree.Tree, *args: Any, config: schema.ModelConfig, method: str, probes: bool = True
) -> tuple[Any, _Layers | None]:
    """Returns (what a method of the model returns, what each layer computed on the way)."""
    model, variables = model_lib.VisionSpeech(config), {"params": params}
    if not probes:
        return model.apply(variables, *args, method=method), None
    out: Any = model.apply(variables, *args, method=method, mutable=["intermediates"])
    returned, sown = out
    blocks = sown["intermediates"]["backbone"]["blocks"]
    return returned, _Layers(blocks["hidden"][0], blocks["gate_activation"][0])


def _compare_greedy(
    frames: Sequence[interface.Frame], others: Sequence[interface.Frame]
) -> dict[str, Any]:
    """Compares two conversations until the first call whose tokens differ."""
    same = [
        one.text_token == other.text_token and np.array_equal(one.audio_tokens, other.audio_tokens)
        for one, other in zip(frames, others, strict=True)
    ]
    equal = [*same, False].index(False)
    pairs = list(zip(frames, others))[: max(equal, 1)]

    def largest(name: str) -> float:
        errors = [np.abs(getattr(a.probes, name) - getattr(b.probes, name)) for a, b in pairs]
        return float(np.max(errors))

    return {
        "greedy_frames_equal": equal,
        "greedy": {
            "max_abs_text_logit_error": largest("text_logits"),
            "max_abs_audio_logit_error": largest("audio_logits"),
            "max_abs_gate_error": float(np.max([abs(a.gate - b.gate) for a, b in pairs])),
        },
    }


def _errors(scored: TeacherForced, given: TeacherForced) -> dict[str, Any]:
    """Returns the largest absolute difference of each kind, the logits' magnitude and mean, agreement."""
    error = {name: np.abs(a - b) for name, a, b in zip(scored._fields, scored, given)}
    text, audio = error["text_logits"], error["audio_logits"]
    return {
        "max_abs_logit_error": float(max(text.max(), audio.max())),
        "max_abs_text_logit_error": float(text.max()),
        "max_abs_audio_logit_error": float(audio.max()),
        "max_abs_text_logit": float(np.abs(scored.text_logits).max()),
        "max_abs_audio_logit": float(np.abs(scored.audio_logits).max()),
        "mean_abs_logit_error": float((text.sum() + audio.sum()) / (text.size + audio.size)),
        "max_abs_gate_error": float(error["gates"].max()),
        "text_agreement": _agreement(scored.text_logits, given.text_logits),
        "audio_agreement": _agreement(scored.audio_logits, given.audio_logits),
        "layers": [
            {
                "max_abs_residual_error": float(error["hidden"][:, layer].max()),
                "max_abs_residual": float(np.abs(scored.hidden[:, layer]).max()),
                "max_abs_gate_error": float(error["gates"][:, layer].max()),
                "mean_gate": float(scored.gates[:, layer].mean()),
            }
            for layer in range(scored.gates.shape[1])
        ],
    }


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of greedy choices that are the same, after the same past."""
    return float(np.mean(a.argmax(axis=-1) == b.argmax(axis=-1)))
