"""Plain Moshi beside the same model with its adapters loaded: without an image, and with an unrelated one.

Without an image nothing may differ, to the bit. What an unrelated image changes, the gates let through.
The reference is plain Moshi's own side of each conversation, teacher-forced, so no transcript is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mvjax import tree
from mvjax.config import schema
from mvjax.data import images as images_lib
from mvjax.eval import model as eval_model
from mvjax.eval.health import conversations
from mvjax.nn import model as model_lib
from mvjax.runtimes.jax import generate
from mvjax.weights import frozen_files

IDENTITY_FRAMES = 1000  # of the conversation in which tokens are compared
_ROWS = 4  # conversations at once; their text logits are [rows, T, V]


class Compared(NamedTuple):
    """Of each frame, [B, T] or [frames]: losses in nats, likeliest ids, mean gate activation.

    Semantic is audio codebook 0.
    """

    text_loss: Any
    semantic_loss: Any
    text: Any
    semantic: Any
    gates: Any


def plain_params(config: schema.Config, params: tree.Tree) -> tree.Tree:
    """Returns the parameters of plain Moshi: what was trained is from the weight files again, or zero."""
    trained, rest = tree.partition(params, config.train.trained)
    files = frozen_files.open_weights(config.frozen, config.model)
    restored = {
        path: jnp.asarray(files[path][()], leaf.dtype) if path in files else jnp.zeros_like(leaf)
        for path, leaf in tree.flatten(trained).items()
    }
    return tree.merge(tree.unflatten(restored), rest)


def identity(
    config: schema.ModelConfig,
    plain: tree.Tree,
    adapted: tree.Tree,
    user_codes: Int[np.ndarray, "U T"],
    pixels: Float[np.ndarray, "1 height width 3"],
    *,
    draws: conversations.Draws = conversations.Draws(),
) -> dict[str, Any]:
    """Lets both hear one user: plain Moshi, and `adapted` with an image loaded that it is not shown.

    Returns the numbers of frames, and of those with equal text and with equal audio, the largest difference
    of text logits, and whether all tokens are equal.
    """
    model = model_lib.VisionSpeech(config)
    how = {
        "key": jax.random.key(draws.seed),
        "text_sampling": draws.text,
        "audio_sampling": draws.audio,
    }
    alone = generate.generate(model, plain, user_codes[None], **how)
    kv = generate.image_kv(model, adapted, pixels)
    loaded = generate.generate(model, adapted, user_codes[None], kv, np.zeros(1, bool), **how)
    text = np.asarray(alone.text_ids == loaded.text_ids)[0]
    audio = np.asarray(alone.audio_codes == loaded.audio_codes)[0].all(axis=0)
    return {
        "frames": int(user_codes.shape[1]),
        "equal_text": int(text.sum()),
        "equal_audio": int(audio.sum()),
        "max_logit_difference": float(jnp.abs(alone.text_logits - loaded.text_logits).max()),
        "identical": bool(text.all() and audio.all()),
    }


def leak(
    plain: eval_model.LoadedModel,
    model: eval_model.LoadedModel,
    alone: Sequence[conversations.Conversation],
    seeing: Sequence[conversations.Conversation],
) -> dict[str, Any]:
    """Compares plain Moshi with the adapters loaded, over conversations that are not about their image.

    Args:
      plain: plain Moshi.
      model: the trained model.
      alone: the conversations as plain Moshi holds them: the reference, teacher-forced.
      seeing: the same with the image in view, each left to itself.

    Returns losses of plain Moshi, and of the model without an image and with it ("no_image",
    "unrelated_image"), each with the shares of frames whose likeliest id is plain Moshi's; and "free": the
    share of frames with the same text token when each goes on by itself, how many conversations differ, and
    the median frame of the first difference (None: all are the same).
    """
    ways = {"plain": (plain, False), "no_image": (model, False), "unrelated_image": (model, True)}
    results = {
        name: _compare_all(which, alone, loaded=name != "plain", sees=sees)
        for name, (which, sees) in ways.items()
    }
    reference = results["plain"]
    found: dict[str, Any] = {"frames": len(reference.text)}
    for name, result in results.items():
        found[name] = {
            "text_loss": float(result.text_loss.mean()),
            "semantic_loss": float(result.semantic_loss.mean()),
            "text_agreement": float((result.text == reference.text).mean()),
            "semantic_agreement": float((result.semantic == reference.semantic).mean()),
            "gate": float(result.gates.mean()),
        }
    same = [a.text_ids == b.text_ids for a, b in zip(alone, seeing, strict=True)]
    first = [int(np.argmin(row)) for row in same if not row.all()]
    found["free"] = {
        "text_agreement": float(np.concatenate(same).mean()),
        "differing": [len(first), len(same)],
        "first_difference": float(np.median(first)) if first else None,
    }
    return found


def _compare_all(
    model: eval_model.LoadedModel,
    held: Sequence[conversations.Conversation],
    *,
    loaded: bool,
    sees: bool,
) -> Compared:
    """The results of all frames of all conversations, one after the other: [frames]."""
    longest = max(len(c.text_ids) for c in held)
    parts = []
    for first in range(0, len(held), _ROWS):
        group = held[first : first + _ROWS]
        filled = [*group, *[group[-1]] * (_ROWS - len(group))]
        codes = np.full((_ROWS, model.config.model.codebooks, longest), -1, np.int32)
        for row, c in zip(codes, filled, strict=True):
            own = np.concatenate([c.text_ids[None], c.audio_codes, c.user_codes])
            row[:, : own.shape[1]] = own
        pixels = images_lib.normalize(np.stack([c.recording.image for c in filled]))
        out = _compare(
            model.model, model.params, codes, pixels if loaded else None, np.full(_ROWS, sees)
        )
        for n, c in enumerate(group):
            parts.append([np.asarray(x[n, : len(c.text_ids)]) for x in out])
    return Compared(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnums=0)
def _compare(
    model: model_lib.VisionSpeech,
    params: tree.Tree,
    codes: Int[Array, "B K T"],
    pixels: Float[Array, "B height width 3"] | None,
    has_image: Bool[Array, "B"],
) -> Any:
    out: Any = model.apply({"params": params}, codes, pixels, has_image, depth_codebooks=1)
    text, semantic = out.text_logits, out.audio_logits[:, :, 0]
    return Compared(
        _nll(text, codes[:, 0]),
        _nll(semantic, codes[:, 1]),
        jnp.argmax(text, -1),
        jnp.argmax(semantic, -1),
        out.gates.mean(axis=0),
    )


def _nll(logits: Float[Array, "B T ids"], ids: Int[Array, "B T"]) -> Float[Array, "B T"]:
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_probabilities, jnp.maximum(ids, 0)[..., None], axis=-1)[..., 0]
