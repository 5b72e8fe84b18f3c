"""Upstream's own code from checkouts outside this repository, and one toy model that all of it can run.

The checkouts are named by environment variables; `tools/check_upstream.py` sets them. What upstream
imports and these checks do not need is replaced by an empty module for as long as the import lasts.
"""

import contextlib
import dataclasses
import importlib
import importlib.machinery
import multiprocessing.queues
import os
import subprocess
import sys
import types
import unittest.mock
import warnings
from pathlib import Path

import numpy as np
import pytest
import toy

from mvjax import gates, tree
from mvjax.config import schema, upstream

MOSHIVIS, BIG_VISION = "MVJAX_MOSHIVIS", "MVJAX_BIG_VISION"
_URLS = {
    MOSHIVIS: "https://github.com/kyutai-labs/moshivis",
    BIG_VISION: "https://github.com/google-research/big_vision",
}

# kyuteye_mlx has the ids 32000 and 2048 and eight levels in its source. D=48 N=4 H=12 F=132 L=3 G=6
# E=24 S=16, depformer d=32 n=2 h=16 f=88 L=2; the hidden widths are 11/4 of the widths in all backends
CONFIG = schema.ModelConfig(
    backbone=schema.BackboneConfig(width=48, layers=3, heads=4, hidden=132, context=20),
    depformer=schema.DepformerConfig(width=32, layers=2, heads=2, hidden=88),
    siglip=schema.SiglipConfig(width=24, layers=2, heads=3, hidden=40, patch=7, image_size=28),
    cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=6)),
)


def like(runtime: str, config: schema.ModelConfig = CONFIG, **fields) -> schema.ModelConfig:
    """The toy model as a runtime computes it; `fields` are of its cross-attention."""
    xa = dataclasses.replace(config.cross_attention, **fields)
    return upstream.imitate(dataclasses.replace(config, cross_attention=xa), runtime)


def params(config: schema.ModelConfig) -> dict:
    """Random parameters in numpy: products of unit variance, and gates between closed and open."""
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(toy.params(config)).items()}
    for path, leaf in flat.items():
        scale = 5.0  # of the noise, back to 1
        if path.endswith("gate/alpha"):
            scale = 3.0
        elif "gate/up" in path:
            scale *= 3.0
        elif path.endswith(("kernel", "embedding")) and not path.startswith("image/encoder"):
            scale *= _fan_in(path, config) ** -0.5
        else:
            scale = 1.0
        flat[path] = leaf * np.float32(scale)
    return tree.unflatten(flat)


def _fan_in(path: str, config: schema.ModelConfig) -> int:
    part = config.depformer if path.startswith("depformer/") else config.backbone
    if path.endswith("mlp/out/kernel"):
        return part.hidden
    if path == "image/proj/kernel":
        return config.siglip.width
    return config.backbone.width if path == "depformer/in/kernel" else part.width


def image() -> np.ndarray:
    """A random picture, uint8."""
    side = CONFIG.siglip.image_size
    return np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8)


def user_codes(frames: int) -> np.ndarray:
    """Random codes [8, frames]."""
    return np.random.default_rng(4).integers(0, 2048, (8, frames)).astype(np.int32)


def checkout(variable: str) -> Path:
    """Returns the checkout that an environment variable names; skips where there is none."""
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f"{variable} names no checkout of {_URLS[variable]}", allow_module_level=True)
    return Path(root).resolve(strict=True)


def kyuteye_pt() -> types.SimpleNamespace:
    """Imports the modules of kyuteye_pt that are used here."""
    _put_on_path(checkout(MOSHIVIS) / "kyuteye_pt")
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    empty = {
        "torchvision.transforms.v2": {"Transform": object},
        "transformers.models.pixtral.image_processing_pixtral": {"PixtralImageProcessor": None},
    }
    names = {
        "loaders": "kyuteye.models.loaders",
        "moshivis": "kyuteye.models.moshivis",
        "config": "kyuteye.config.kyuteye_config",
        "enums": "kyuteye.config.enums",
        "cross_attention": "kyuteye.modules.cross_attention",
        "transformer": "kyuteye.modules.transformer",
        "image_encoder": "kyuteye.modules.image_encoder",
        "utils": "kyuteye.modules.utils",
    }
    with _standing_in(empty):
        return _import(names)


def servers() -> types.SimpleNamespace:
    """Imports the servers of kyuteye_pt and kyuteye_mlx, after the modules above."""
    empty = {
        "fire": {"Fire": None},
        "line_profiler": {"LineProfiler": object},
        "torchvision.io": {"ImageReadMode": types.SimpleNamespace(RGB=None), "decode_image": None},
    }
    of_items = classmethod(
        types.GenericAlias
    )  # as of Python 3.12, which kyuteye_mlx is written for
    subscripted = unittest.mock.patch.object(
        multiprocessing.queues.Queue, "__class_getitem__", of_items, create=True
    )
    with _standing_in(empty), subscripted:
        return _import({"pt": "kyuteye.server", "mlx": "kyuteye_mlx.local_web"})


def siglip_of(modules, siglip):
    """kyuteye_pt builds So400m whatever its config says: these sizes instead, while it builds."""
    transformers = pytest.importorskip("transformers")
    sizes = transformers.SiglipVisionConfig(
        hidden_size=siglip.width,
        num_hidden_layers=siglip.layers,
        num_attention_heads=siglip.heads,
        intermediate_size=siglip.hidden,
        patch_size=siglip.patch,
        image_size=siglip.image_size,
        vision_use_head=False,
    )

    def model(config):
        del config
        return types.SimpleNamespace(vision_model=transformers.SiglipVisionModel(sizes))

    encoder = unittest.mock.patch.multiple(
        modules.image_encoder, SiglipVisionModel=model, SiglipVisionConfig=lambda **_: None
    )
    width = property(lambda _: siglip.width)
    stack = contextlib.ExitStack()
    stack.enter_context(encoder)
    stack.enter_context(unittest.mock.patch.object(modules.enums.ImageEncoder, "out_dims", width))
    return stack


def kyuteye_mlx() -> types.SimpleNamespace:
    """Imports the modules of kyuteye_mlx that are used here; it asks which Mac it is on."""
    _put_on_path(checkout(MOSHIVIS) / "kyuteye_mlx")
    pytest.importorskip("mlx.core")
    names = {
        "models": "kyuteye_mlx.models",
        "siglip": "kyuteye_mlx.models.siglip",
        "loading": "kyuteye_mlx.utils.loading",
        "cross_attention": "kyuteye_mlx.modules.cross_attention",
        "kv_cache": "kyuteye_mlx.modules.kv_cache",
    }
    answer = unittest.mock.patch.object(subprocess, "check_output", return_value=b"hw.model: none")
    with answer:
        return _import(names)


def big_vision() -> types.SimpleNamespace:
    """Imports big_vision's ViT and its tree utilities, without TensorFlow."""
    _put_on_path(checkout(BIG_VISION))
    _import({"flax": "flax.training.checkpoints"})  # it would take the stand-in for TensorFlow
    empty = {"tensorflow.io.gfile": {"GFile": open}, "ml_collections": {"ConfigDict": dict}}
    with _standing_in(empty):
        return _import({"vit": "big_vision.models.vit", "utils": "big_vision.utils"})


def _import(names: dict[str, str]) -> types.SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = {short: importlib.import_module(name) for short, name in names.items()}
    return types.SimpleNamespace(**modules)


def _put_on_path(folder: Path) -> None:
    assert folder.is_dir(), f"{folder}: expected a folder of the checkout"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@contextlib.contextmanager
def _standing_in(modules: dict[str, dict]):
    """Makes each module importable, with these attributes, unless it is installed."""
    added = []
    for name, attributes in modules.items():
        try:
            importlib.import_module(name)
            continue
        except Exception:  # a broken installation is none
            parts = name.split(".")
        for i in range(len(parts)):
            path = ".".join(parts[: i + 1])
            if path in sys.modules:
                continue
            module = types.ModuleType(path)
            module.__spec__ = importlib.machinery.ModuleSpec(path, None)
            sys.modules[path] = module
            added.append(path)
            if i:
                setattr(sys.modules[".".join(parts[:i])], parts[i], module)
        vars(sys.modules[name]).update(attributes)
    try:
        yield
    finally:
        for path in added:
            del sys.modules[path]
