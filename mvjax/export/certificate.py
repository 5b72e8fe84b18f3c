"""Compares an exported folder, reloaded by a real-time runtime, with the JAX model that wrote it.

Three questions. *Values*: does the reloaded file hold the model's weights, rounded as its format rounds?
*Computation*: does the runtime compute what JAX computes with the reloaded weights, as `agreement` compares
them? *Loss*, if the format rounds: the same against the model as trained. The verdict is "pass", "lossy" (the
file is right, and its loss is stated) or "fail"; beside it stands how far the same runtime is in bfloat16, in
which a GPU serves. Config files are compared key by key with what they should say, codec and tokenizer with
the run's; `verify` checks the hashes of all files later. Where the runtime's package is not installed the
computation is left out, and the verdict is "not run" at best.

Besides the parameters that it is given, one whole model at a time is in memory, in float32: the runtime's,
then JAX's with the reloaded weights, then JAX's as trained. The rest is compared leaf by leaf.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mvjax import files as files_lib
from mvjax import tree
from mvjax.config import schema
from mvjax.export import (
    agreement,
    deviations,
    model_card,
    other_files,
    targets,
    verdict,
    verify,
    weight_files,
)
from mvjax.runtimes import interface, loading
from mvjax.weights import checksums, file_names, frozen_files, lazy, placement

MIN_FRAMES = 100  # of a conversation that a certificate is about
_USUAL_FRAMES, _MANY_FRAMES = 120, 600

_ALSO = {"candle": ", on the reloaded files; kyuteye_rs itself was not run"}
_SERVED = "bfloat16"
_APART = (
    "max_abs_logit_error", "mean_abs_logit_error", "max_abs_gate_error", "text_agreement",
    "audio_agreement",
)  # fmt: skip
_LOSS = (*_APART, "greedy_frames_equal")


def certify(
    params: tree.Tree,
    config: schema.Config,
    folder: Path,
    target: targets.Target,
    *,
    pixels: Float[np.ndarray, "1 height width 3"],
    user_codes: Int[np.ndarray, "U T"],
    dtype: schema.Dtype | None = None,
    quantization: targets.Quantization | None = None,
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """Returns the certificate and writes it to `folder/certificate.json`; the card says the verdict, too.

    An earlier one stays until then, also if this is interrupted, but not if it fails.

    Both sides compute as trained: what the config imitates of an upstream runtime, and no file tells one
    (how a conversation begins, eps of SigLIP's last norm), is left out. `pixels` lie in [-1, 1], `user_codes`
    are undelayed, `tolerance` is the share of the largest logit, or of 1, by which logits and gate means may
    differ; the rest is as given to `export`.

    Raises:
      ValueError: if there are fewer than MIN_FRAMES frames.
    """
    T = user_codes.shape[1]
    if T < MIN_FRAMES:
        raise ValueError(f"certify: expected at least {MIN_FRAMES} frames of user codes, got {T}")
    with revoked_if_it_fails(folder):
        weights = folder / targets.weight_file(target, quantization)
        reloaded = weight_files.open_exported(weights, config.model, target, dtype=np.float32)
        certificate = {
            "target": target,
            "upstream": targets.UPSTREAM[target],
            "file": weights.name,
            "files": {},
            "not_as_exported": other_files.differing(config, folder, target, quantization),
            "stored_as": quantization or dtype or "as trained",
            "tolerance": tolerance,
            **_values(params, config, reloaded, target, dtype=dtype, quantization=quantization),
            "upstream_differences": deviations.deviations(config.model, target, quantization),
            **_computation(
                params, config.model, folder, target, reloaded,
                pixels=pixels, user_codes=user_codes, eight_bit=quantization == "q8_0",
            ),
        }  # fmt: skip
    certificate |= verdict.verdict(certificate)
    model_card.state(folder, verdict.summary(certificate))
    certificate["files"] = verify.hashes(folder)
    content = json.dumps(certificate, indent=1).encode()
    files_lib.write_atomic(folder / file_names.CERTIFICATE, content)
    return certificate


@contextlib.contextmanager
def revoked_if_it_fails(folder: Path) -> Iterator[None]:
    """Takes an earlier certificate away if what is tried fails; an interrupt leaves it."""
    try:
        yield
    except Exception:
        (folder / file_names.CERTIFICATE).unlink(missing_ok=True)
        model_card.state(folder, model_card.UNCERTIFIED)
        raise


def _computation(
    params: tree.Tree,
    config: schema.ModelConfig,
    folder: Path,
    target: targets.Target,
    reloaded: Mapping[str, lazy.LazyTensor],
    *,
    pixels: Float[np.ndarray, "1 height width 3"],
    user_codes: Int[np.ndarray, "U T"],
    eight_bit: bool,
) -> dict[str, Any]:
    """Compares what the runtime computes with what JAX does, from the file and from the model as trained.

    Where the runtime is not installed, says what is needed and what completes the certificate.
    """
    try:
        runtime, frames = _talk(folder, pixels, user_codes)
    except loading.MissingRuntime as missing:
        needed = {"needs": missing.package, "install": missing.install}
        return {"not_run": {**needed, "command": "mvjax certify DIR --run RUN"}}
    model, T = _as_trained(config), user_codes.shape[1]
    # as upstream's server multiplies
    rounded = _talk(folder, pixels, user_codes, rounded=True)[1] if eight_bit else None
    served = _served(folder, pixels, user_codes, frames)
    compare = functools.partial(agreement.compare, model=model, pixels=pixels, user=user_codes)
    found = {
        "runtime": f"{runtime}{_ALSO.get(target, '')}",
        "frames": T,
        "window": model.backbone.window,
        "talked_past_window": model.backbone.window < T,
        **compare(reloaded, frames=frames),
        "served": served,
    }
    trained = _on_host(params)
    lossy = any(not _equal(leaf, trained[path]) for path, leaf in reloaded.items())
    found["loss"] = _loss(compare(trained, frames=frames)) if lossy else None
    if rounded is not None:
        found["loss_with_8_bit_activations"] = _loss(compare(trained, frames=rounded))
    return found


def usual_frames(model: schema.ModelConfig) -> int:
    """Returns how many frames reach past the attention window, or few where that would take too long."""
    past = max(model.backbone.window + 8, _USUAL_FRAMES)
    return past if past <= _MANY_FRAMES else _USUAL_FRAMES


def any_conversation(model: schema.ModelConfig, frames: int) -> dict[str, Any]:
    """Returns `pixels` and `user_codes` for `certify`: random, and always the same."""
    rng = np.random.default_rng(0)
    side, users = model.siglip.image_size, model.codebooks - 1 - model.codebooks_out
    return {
        "pixels": rng.uniform(-1, 1, (1, side, side, 3)).astype(np.float32),
        "user_codes": rng.integers(0, model.audio_vocab, (users, frames)).astype(np.int32),
    }


def _loss(compared: Mapping[str, Any]) -> dict[str, Any]:
    return {name: compared[name] for name in _LOSS}


def _as_trained(model: schema.ModelConfig) -> schema.ModelConfig:
    """Returns the config in float32, as the runtimes of `mvjax.runtimes` compute."""
    eps = schema.SiglipConfig().final_norm_eps
    return dataclasses.replace(
        model,
        dtype="float32",
        stream=schema.StreamConfig(),
        siglip=dataclasses.replace(model.siglip, final_norm_eps=eps),
    )


def _talk(
    folder: Path,
    pixels: Float[np.ndarray, "1 height width 3"],
    user_codes: Int[np.ndarray, "U T"],
    *,
    rounded: bool = False,
) -> tuple[str, list[interface.Frame]]:
    """Returns the runtime's module and its frames; its weights are freed before JAX's are loaded."""
    model = loading.open_folder(folder, dtype="float32", round_activations=rounded)
    return type(model).__module__, agreement.talk(model, np.asarray(pixels, np.float32), user_codes)


def _served(
    folder: Path,
    pixels: Float[np.ndarray, "1 height width 3"],
    user_codes: Int[np.ndarray, "U T"],
    frames: list[interface.Frame],
) -> dict[str, Any]:
    """Returns how far the runtime in the dtype that a GPU serves is from itself in float32."""
    model = loading.open_folder(folder, dtype=_SERVED)
    found = agreement.apart(model, np.asarray(pixels, np.float32), user_codes, frames)
    return {"dtype": _SERVED, **{name: found[name] for name in _APART}}


def _values(
    params: tree.Tree,
    config: schema.Config,
    reloaded: Mapping[str, lazy.LazyTensor],
    target: targets.Target,
    *,
    dtype: schema.Dtype | None,
    quantization: targets.Quantization | None,
) -> dict[str, Any]:
    """Compares the reloaded weights with those that training started from and those it made.

    The frozen ones are read again from their source, then rounded as the file rounds.
    """
    adapters, frozen = tree.partition(params, config.train.trained)
    source = frozen_files.open_weights(config.frozen, config.model)
    start = {
        path: lazy.cast(source[path], leaf.dtype) if path in source else leaf
        for path, leaf in _on_host(frozen).items()
    }
    expected = weight_files.as_stored(
        tree.merge(adapters, tree.unflatten(start)),
        config.model,
        target,
        dtype=dtype,
        quantization=quantization,
    )
    files = [path for path in start if path in source]
    return {
        "values": {
            "tensors": len(expected),
            "not_as_exported": [p for p, x in reloaded.items() if not _equal(x, expected[p])],
        },
        "frozen": {
            "tensors": len(files),
            "sha256_at_start": _hash({p: start[p] for p in files}),
            "sha256_as_stored": _hash({p: expected[p] for p in files}),
            "sha256_in_export": _hash({p: reloaded[p] for p in files}),
        },
    }


def _on_host(params: tree.Tree) -> dict[str, lazy.LazyTensor]:
    return {path: placement.on_host(leaf) for path, leaf in tree.flatten(params).items()}


def _equal(a: lazy.LazyTensor, b: lazy.LazyTensor) -> bool:
    """Whether the values, in float32, are the same."""
    return np.array_equal(np.asarray(a[()], np.float32), np.asarray(b[()], np.float32))


def _hash(leaves: Mapping[str, lazy.LazyTensor]) -> str:
    """Returns the SHA-256 over paths, shapes and float32 values."""
    digest = hashlib.sha256()
    for path in sorted(leaves):
        leaf = np.require(leaves[path][()], np.float32, "C")
        digest.update(f"{path} {leaf.dtype.name} {leaf.shape}".encode())
        digest.update(checksums.raw(leaf))
    return digest.hexdigest()
