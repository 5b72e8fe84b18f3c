"""A toy model to export, with files for its frozen part, and what to say to it."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from mvjax import tree
from mvjax.commands import extras
from mvjax.config import schema
from mvjax.export import agreement
from mvjax.export import folder as export_folder
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import loading
from mvjax.runtimes.jax import model as jax_model
from mvjax.weights import big_vision, kyutai, rules

TOY = toy.EXPORTED
# what `verify` reads of a good certificate, but for its files
CERTIFICATE = {
    "target": "torch",
    "verdict": "pass",
    "reasons": [],
    "tolerance": 1e-4,
    "max_abs_text_logit_error": 1e-6,
    "max_abs_audio_logit_error": 1e-6,
    "max_abs_gate_error": 1e-6,
    "greedy_frames_equal": 120,
    "frames": 120,
    "frozen": {"sha256_as_stored": "a", "sha256_in_export": "a"},
    "values": {"not_as_exported": []},
    "not_as_exported": [],
    "loss": None,
    "talked_past_window": True,
}


def with_adapters(**changes) -> schema.ModelConfig:
    """The toy with other cross-attention."""
    adapters = dataclasses.replace(TOY.cross_attention, **changes)
    return dataclasses.replace(TOY, cross_attention=adapters)


def random_params(config=TOY, *, size=0.3) -> dict:
    """Neither tiny nor saturating: norms around 1, contractions around 0.3."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in rules.leaf_shapes(kyutai.vis_rules(config), kyutai.sizes(config)).items():
        center = 1.0 if path.endswith(("scale", "gate_alpha")) else 0.0
        flat[path] = (center + size * rng.standard_normal(shape)).astype(np.float32)
    return tree.unflatten(flat)


def make_run(folder: Path, model: schema.ModelConfig, params: dict) -> schema.Config:
    """A config whose frozen files hold the frozen part of the parameters."""
    kyutai.save_moshi(folder / "moshi.safetensors", params, model)
    big_vision.save_siglip(folder / "siglip.npz", params["image"]["encoder"])
    (folder / "mimi").write_bytes(b"mimi")
    (folder / "spm").write_bytes(b"spm")
    names = ("moshi.safetensors", "siglip.npz", "mimi", "spm")
    files = schema.FrozenFiles(*(str(folder / name) for name in names))
    return schema.Config(frozen=files, model=model)


def write(config, target, folder, *, params=None, **how):
    """Exports into `folder/target`; returns (parameters, that folder)."""
    (folder / "codec").write_bytes(b"codec")
    (folder / "tokenizer").write_bytes(b"tokenizer")
    files = schema.FrozenFiles("", "", str(folder / "codec"), str(folder / "tokenizer"))
    params = random_params(config) if params is None else params
    run = schema.Config(frozen=files, model=config)
    return params, export_folder.export(params, run, target, folder / target, **how)


def in_runtime(name, folder):
    """(random parameters, the toy model in a runtime: "jax", or an export in the folder)."""
    if name == "jax":
        params = random_params()
        return params, jax_model.JaxModel(TOY, params)
    params, folder = write(TOY, name, folder)
    return params, open_model(folder)


def open_model(folder):
    """Loads an exported folder; skips where the runtime's package is not installed."""
    pytest.importorskip("mlx.core" if folder_lib.layout(folder) == "mlx" else "torch")
    return loading.open_folder(folder)


def inputs(frames, model=TOY):
    """An image in [-1, 1] and what the user says, undelayed."""
    rng = np.random.default_rng(1)
    side, users = model.siglip.image_size, model.codebooks - 1 - model.codebooks_out
    pixels = rng.uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
    return pixels, rng.integers(0, model.audio_vocab, (users, frames))


def talk(model, frames):
    """What a model says in a conversation about an image, by greedy decoding, with probes."""
    return agreement.talk(model, *inputs(frames))


def stacked(frames, name):
    """A probe of every frame."""
    return np.stack([getattr(frame.probes, name) for frame in frames])


def absent(monkeypatch, package):
    """As on a machine without this package of a runtime."""
    ours = f"mvjax.runtimes.{package.partition('.')[0]}."
    for name in [name for name in sys.modules if f"{name}.".startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    installed = extras.installed
    monkeypatch.setattr(extras, "installed", lambda name: name != package and installed(name))
