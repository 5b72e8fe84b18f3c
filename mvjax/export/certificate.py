"""Compares an exported folder, reloaded by a real-time runtime, with the JAX model that wrote it.

Three questions. *Values*: does the reloaded file hold the model's weights, rounded as its format rounds?
*Computation*: does the runtime compute what JAX computes with the reloaded weights, as `agreement` compares
them? *Loss*, if the format rounds: the same against the model as trained. The verdict is "pass", "lossy" (the
file is right, and its loss is stated) or "fail"; beside it stands how far the same runtime is in bfloat16, in
which a GPU serves. Config files are compared key by key with what they should say, codec and tokenizer with
the run's; `verify` checks the hashes of all files later.

Besides the parameters that it is given, one whole model at a time is in memory, in float32: the runtime's,
then JAX's with the reloaded weights, then JAX's as trained. The rest is compared leaf by leaf.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float, Int

from mvjax import files as files_lib
from mvjax import tree
from mvjax.config import schema
from mvjax.export import (
    agreement,
    deviations,
    runtime_configs,
    targets,
    verdict,
    verify,
    weight_files,
)
from mvjax.runtimes import interface, loading
from mvjax.weights import checksums, codecs, file_names, frozen_files, lazy, placement, stated

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
    """Returns the certificate and writes it to `folder/certificate.json`, whose earlier one goes first.

    Both sides compute as trained: what the config imitates of an upstream runtime, and no file tells one
    (how a conversation begins, eps of SigLIP's last norm), is left out. `pixels` lie in [-1, 1], `user_codes`
    are undelayed, `tolerance` is on differences of logits and gate means; the rest is as given to `export`.

    Raises:
      ValueError: if there are fewer than MIN_FRAMES frames.
      ModuleNotFoundError: if the runtime's package is not installed, with the remedy.
    """
    (folder / file_names.CERTIFICATE).unlink(missing_ok=True)
    T = user_codes.shape[1]
    if T < MIN_FRAMES:
        raise ValueError(f"certify: expected at least {MIN_FRAMES} frames of user codes, got {T}")
    model = _as_trained(config.model)
    runtime, frames = _talk(folder, pixels, user_codes)
    # as upstream's server multiplies
    rounded = _talk(folder, pixels, user_codes, rounded=True)[1] if quantization == "q8_0" else None
    served = _served(folder, pixels, user_codes, frames)
    weights = folder / targets.weight_file(target, quantization)
    reloaded = weight_files.open_exported(weights, config.model, target, dtype=np.float32)
    compare = functools.partial(agreement.compare, model=model, pixels=pixels, user=user_codes)
    certificate = {
        "target": target,
        "upstream": targets.UPSTREAM[target],
        "runtime": f"{runtime}{_ALSO.get(target, '')}",
        "file": weights.name,
        "files": verify.hashes(folder),
        "not_as_exported": _other_files(config, folder, target, quantization),
        "stored_as": quantization or dtype or "as trained",
        "frames": T,
        "window": model.backbone.window,
        "talked_past_window": model.backbone.window < T,
        "tolerance": tolerance,
        **compare(reloaded, frames=frames),
        **_values(params, config, reloaded, target, dtype=dtype, quantization=quantization),
        "served": served,
        "upstream_differences": deviations.deviations(config.model, target, quantization),
    }
    trained = _on_host(params)
    lossy = any(not _equal(leaf, trained[path]) for path, leaf in reloaded.items())
    certificate["loss"] = _loss(compare(trained, frames=frames)) if lossy else None
    if rounded is not None:
        certificate["loss_with_8_bit_activations"] = _loss(compare(trained, frames=rounded))
    certificate |= verdict.verdict(certificate)
    content = json.dumps(certificate, indent=1).encode()
    files_lib.write_atomic(folder / file_names.CERTIFICATE, content)
    return certificate


def usual_frames(model: schema.ModelConfig) -> int:
    """Returns how many frames reach past the attention window, or few where that would take too long."""
    past = max(model.backbone.window + 8, _USUAL_FRAMES)
    return past if past <= _MANY_FRAMES else _USUAL_FRAMES


def summary(certificate: dict[str, Any]) -> str:
    """Returns verdict, errors, what rounding costs, and every reason to fail, for people."""
    lines = [
        f"{certificate['verdict']}: largest logit error {certificate['max_abs_logit_error']:.2g},"
        f" greedy tokens agree over {certificate['greedy_frames_equal']} frames",
        *certificate["reasons"],
    ]
    if not certificate["talked_past_window"]:
        lines.append(verify.window_note(certificate))
    if loss := certificate["loss"]:
        stored = f"stored as {certificate['stored_as']}"
        lines.append(f"{stored}, so beside the model as trained: {_in_words(loss)}")
    if loss := certificate.get("loss_with_8_bit_activations"):
        lines.append(f"with activations in 8 bits, as kyuteye_rs has them: {_in_words(loss)}")
    if served := certificate.get("served"):  # an earlier certificate has none
        in_dtype = f"served in {served['dtype']}"
        lines.append(f"{in_dtype}, beside the same in float32: {_in_words(served)}")
    return "\n  ".join(lines)


def _in_words(apart: Mapping[str, Any]) -> str:
    return (
        f"logit error {apart['max_abs_logit_error']:.2g} at most, {apart['mean_abs_logit_error']:.2g} in"
        f" the mean; same greedy text in {apart['text_agreement']:.1%} and audio in"
        f" {apart['audio_agreement']:.1%} of cases"
    )


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


def _other_files(
    config: schema.Config,
    folder: Path,
    target: targets.Target,
    quantization: targets.Quantization | None,
) -> list[str]:
    """Returns the keys of config files that are not as they should be; codec, tokenizer if not the run's."""
    differing = []
    for name, content in runtime_configs.contents(config.model, target, quantization).items():
        text = (folder / name).read_text()
        as_yaml = name == file_names.TORCH_CONFIG
        found = _flat(yaml.safe_load(text) if as_yaml else json.loads(text))
        wanted = _flat(content)
        differing += [
            f"{name}: {key}: expected {wanted.get(key, 'no such key')!r},"
            f" found {found.get(key, 'no such key')!r}"
            for key in sorted(wanted.keys() | found.keys())
            if key not in wanted or key not in found or wanted[key] != found[key]
        ]
    if codecs.read_sizes(folder) != codecs.stated_sizes(config.codec):
        differing.append(f"{file_names.CODEC_CONFIG}: is not the run's")
    if stated.read(folder / file_names.TALK, config.talk) != config.talk:
        differing.append(f"{file_names.TALK}: is not the run's")
    sources = {file_names.CODEC: config.frozen.codec, file_names.TOKENIZER: config.frozen.tokenizer}
    return differing + [
        f"{name}: is not the run's"
        for name, source in sources.items()
        if files_lib.file_hash(folder / name) != files_lib.file_hash(files_lib.resolve(source))
    ]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {path with dots: value}."""
    flat = {}
    for key, value in content.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
