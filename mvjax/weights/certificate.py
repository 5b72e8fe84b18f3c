"""Compares an exported folder, reloaded by a real-time runtime, with the JAX model that wrote it.

Two comparisons on the same image and user codes. *Greedy*: both sides talk on their own, and their
tokens are compared. *Told*: JAX runs once over the whole sequence with the runtime's own tokens,
and every text and audio logit, gate and layer of every frame is compared.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mvjax import config as config_lib
from mvjax import tree
from mvjax.nn import backbone, xattn
from mvjax.nn import model as model_lib
from mvjax.weights import big_vision, export, kyutai, targets

CERTIFICATE_FILE = "certificate.json"

# By name, since `weights` comes before `stream`, and the runtimes need packages that may be absent.
_ENGINE = "mvjax.stream.engine"
_RUNTIMES = {"torch": "mvjax.stream.torch_runtime", "mlx": "mvjax.stream.mlx_runtime"}


class Told(NamedTuple):
    """One side of the second comparison, one entry a frame."""

    text_logits: Float[np.ndarray, "T V"]
    audio_logits: Float[np.ndarray, "T Q C"]
    gates: Float[np.ndarray, "T L"]
    hidden: Float[np.ndarray, "T L D"]


def certify(
    params: tree.Tree,
    config: config_lib.Config,
    folder: Path,
    target: targets.Target,
    *,
    pixels: Float[np.ndarray, "1 height width 3"],
    user_codes: Int[np.ndarray, "U T"],
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """Returns the certificate and writes it to `folder/certificate.json`.

    Args:
      params: what was exported.
      config: of the run; its frozen files are hashed again.
      folder: written by `export`.
      target: as told to `export`.
      pixels: the image, in [-1, 1].
      user_codes: what the user says, undelayed; at least 100 frames.
      tolerance: on absolute differences of logits and gate means, in float32.

    Raises:
      ValueError: if there are fewer than 100 frames.
      ModuleNotFoundError: if the runtime's package is not installed, with the remedy.
    """
    T = user_codes.shape[1]
    if T < 100:
        raise ValueError(f"certify: expected at least 100 frames of user codes, got {T}")
    model = dataclasses.replace(config.model, dtype="float32")
    leaves = tree.flatten(params)
    exact = tree.unflatten({p: jnp.asarray(x, jnp.float32) for p, x in leaves.items()})
    runtime = _runtime_module(target).Runtime(folder)
    runtime.image(np.asarray(pixels, np.float32))
    outs = [runtime.step(user_codes[:, t]) for t in range(T)]
    codes = np.concatenate([_spoken(outs, model), user_codes])[None].astype(np.int32)
    with jax.default_matmul_precision("highest"):
        kv = _run(model_lib.VisionSpeech(model), exact, "look", jnp.asarray(pixels, jnp.float32))
        greedy = _compare_greedy(exact, model, kv, user_codes, outs)
        told = _told_by_jax(exact, model, kv, codes)
    found = Told(*(np.stack([getattr(out, name) for out in outs]) for name in Told._fields))
    certificate = {
        "target": target,
        "upstream": targets.UPSTREAM[target],
        "file": targets.MODEL_FILE,
        "file_sha256": _file_hash(folder / targets.MODEL_FILE),
        "frames": T,
        "tolerance": tolerance,
        **_errors(told, found),
        **greedy,
        "frozen": _frozen_hashes(params, config, folder, target),
        "upstream_differences": targets.deviations(config.model, target),
    }
    certificate |= _verdict(certificate)
    (folder / CERTIFICATE_FILE).write_text(json.dumps(certificate, indent=1))
    return certificate


def _runtime_module(target: targets.Target) -> Any:
    try:
        return importlib.import_module(_RUNTIMES[target])
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the {target} runtime needs {error.name!r}: pip install 'mvjax[{target}]'"
        ) from error


def _spoken(outs: list[Any], config: config_lib.ModelConfig) -> Int[np.ndarray, "rows T"]:
    """Returns the runtime's own text and audio as undelayed rows; the unknown end is zeros."""
    T, Q = len(outs), config.codebooks_out
    rows = np.zeros((1 + Q, T), np.int32)
    rows[0] = [out.text_token for out in outs]
    for q, delay in enumerate(config.delays[1 : 1 + Q]):
        rows[1 + q, : T - delay] = [out.audio_tokens[q] for out in outs[delay:]]
    return rows


def _told_by_jax(
    params: tree.Tree,
    config: config_lib.ModelConfig,
    kv: xattn.KeysValues,
    codes: Int[np.ndarray, "1 K T"],
) -> Told:
    """Runs the JAX model over the whole sequence, in the training form."""
    run = functools.partial(_run, model_lib.VisionSpeech(config), params)
    columns = model_lib.delay_codes(jnp.asarray(codes), config)
    entering, leaving = columns[:, :, :-1], columns[:, :, 1:]
    z, gate_means = run("hidden", entering, kv)
    said = jnp.moveaxis(leaving[:, 1 : config.codebooks_out], 1, 2)
    return Told(
        text_logits=np.asarray(run("text_logits", z)[0]),
        audio_logits=np.asarray(run("depth_logits", z, leaving[:, 0], said)[0]),
        gates=np.asarray(gate_means[:, 0].T),
        hidden=np.asarray(_residual_streams(params, config, entering, kv)),
    )


def _run(model: model_lib.VisionSpeech, params: tree.Tree, method: str, *args: Any) -> Any:
    def apply(p: tree.Tree, *rest: Any) -> Any:
        return model.apply({"params": p}, *rest, method=method)

    return jax.jit(apply)(params, *args)


def _residual_streams(
    params: tree.Tree,
    config: config_lib.ModelConfig,
    columns: Int[Array, "1 K T"],
    kv: xattn.KeysValues,
) -> Float[Array, "T L D"]:
    """Returns the residual stream after each layer, by running the blocks one by one."""
    shared = xattn.Shared(
        kernels={name: leaf["kernel"] for name, leaf in params["xa"].items()},
        gate=tree.flatten(params["gate"]) if "gate" in params else None,
    )
    everywhere = jnp.ones((1, columns.shape[2]), bool)
    block = jax.jit(
        lambda p, x: backbone.Block(config).apply(
            {"params": p}, (x, None), jnp.int32(0), kv, shared, everywhere
        )
    )
    own = backbone.Backbone(config)
    x = own.apply({"params": params["backbone"]}, columns, method="embed")
    streams = []
    for layer in range(config.backbone.layers):
        of_layer = jax.tree.map(lambda leaf: leaf[layer], params["backbone"]["blocks"])  # noqa: B023
        (x, _), _ = block(of_layer, x)
        streams.append(x[0])
    return jnp.stack(streams, axis=1)


def _compare_greedy(
    params: tree.Tree,
    config: config_lib.ModelConfig,
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
    """Returns the largest absolute difference of each kind."""
    error = {name: np.abs(a - b) for name, a, b in zip(Told._fields, told, found)}
    text, audio = float(error["text_logits"].max()), float(error["audio_logits"].max())
    return {
        "max_abs_logit_error": max(text, audio),
        "max_abs_text_logit_error": text,
        "max_abs_audio_logit_error": audio,
        "max_abs_gate_error": float(error["gates"].max()),
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


def _frozen_hashes(
    params: tree.Tree, config: config_lib.Config, folder: Path, target: targets.Target
) -> dict[str, Any]:
    """Hashes the frozen tensors as training loaded them and as the exported file holds them."""
    _, frozen = tree.partition(params, config.train.trained)
    source = tree.flatten(kyutai.load_moshi(config.frozen.moshi, config.model))
    encoder = big_vision.load_siglip(config.frozen.siglip, config.model.siglip)
    source |= {f"image/encoder/{p}": x for p, x in tree.flatten(encoder).items()}
    exported = tree.flatten(export.load_exported(folder / targets.MODEL_FILE, config.model, target))
    # in the dtype that the model kept them in; a file may hold another
    dtypes = {p: np.asarray(x).dtype for p, x in tree.flatten(frozen).items() if p in source}
    return {
        "tensors": len(dtypes),
        "sha256_at_start": _hash({p: source[p].astype(dtype) for p, dtype in dtypes.items()}),
        "sha256_in_export": _hash({p: exported[p].astype(dtype) for p, dtype in dtypes.items()}),
    }


def _hash(leaves: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for path in sorted(leaves):
        leaf = np.ascontiguousarray(leaves[path])
        digest.update(f"{path} {leaf.dtype.name} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verdict(certificate: dict[str, Any]) -> dict[str, Any]:
    """Returns pass or fail, with every reason to fail."""
    tolerance, frozen = certificate["tolerance"], certificate["frozen"]
    reasons = [
        f"{name} = {certificate[name]:.3g} exceeds {tolerance:g}"
        for name in ("max_abs_text_logit_error", "max_abs_audio_logit_error", "max_abs_gate_error")
        if not certificate[name] <= tolerance  # also catches NaN
    ]
    equal, frames = certificate["greedy_frames_equal"], certificate["frames"]
    if equal < frames:
        reasons.append(f"greedy tokens agree over {equal} of {frames} frames")
    if frozen["sha256_at_start"] != frozen["sha256_in_export"]:
        reasons.append("the frozen tensors are not those that training started from")
    return {"verdict": "fail" if reasons else "pass", "reasons": reasons}
