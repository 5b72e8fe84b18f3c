"""A toy model with all dimensions different, shared by the model and engine tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mvjax import gates
from mvjax.config import schema
from mvjax.nn import model as model_lib

# B=2 T=9 S=4 D=24 E=12 F=66 N=4 H=6 L=3 K=7 Q=3 V=31 C=19 G=7; depformer d=16 n=2 h=8 f=44 L=2
CONFIG = schema.ModelConfig(
    backbone=schema.BackboneConfig(width=24, layers=3, heads=4, hidden=66, context=5),
    depformer=schema.DepformerConfig(width=16, layers=2, heads=2, hidden=44),
    siglip=schema.SiglipConfig(width=12, layers=2, heads=3, hidden=20, patch=4, image_size=8),
    cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=7)),
    text_vocab=31,
    audio_vocab=19,
    codebooks_out=3,
    delays=(0, 0, 1, 1, 0, 1, 1),
)
B, T = 2, 9

GATES = {
    "none": None,
    "tanh": gates.Constant("tanh"),
    "sigmoid": gates.Constant("sigmoid"),
    "conditional_tanh": gates.Conditional(hidden=7, activation="tanh"),
    "conditional_sigmoid": gates.Conditional(hidden=7, activation="sigmoid"),
}


def with_cross_attention(**fields) -> schema.ModelConfig:
    """CONFIG with another kind of cross-attention."""
    xa = dataclasses.replace(CONFIG.cross_attention, **fields)
    return dataclasses.replace(CONFIG, cross_attention=xa)


@functools.cache
def params(config: schema.ModelConfig = CONFIG, seed: int = 0):
    """Initial parameters plus noise, so that no scale is 1 and no gate is closed."""
    model = model_lib.VisionSpeech(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    leaves, structure = jax.tree.flatten(shapes)
    random = np.random.default_rng(seed)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    filled = []
    for path, leaf in zip(paths, leaves, strict=True):
        noise = random.standard_normal(leaf.shape).astype(np.float32) * 0.2  # about 1/sqrt(D)
        with jax.ensure_compile_time_eval():  # the first caller may be inside a jit
            filled.append(jnp.asarray(noise + 1.0 if "scale" in path or "alpha" in path else noise))
    return jax.tree.unflatten(structure, filled)


def codes(seed: int = 1, batch: int = B, frames: int = T, config=CONFIG) -> np.ndarray:
    """Random undelayed ids int32 [batch, K, frames], all present."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, config.audio_vocab, (batch, config.codebooks, frames))
    ids[:, 0] = random.integers(0, config.text_vocab, (batch, frames))
    return ids.astype(np.int32)


def pixels(seed: int = 2, batch: int = B, config=CONFIG) -> np.ndarray:
    """Random images in [-1, 1]."""
    side = config.siglip.image_size
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)


def apply(method, *args, config=CONFIG, weights=None, **kwargs):
    """Runs one method of the model under jit."""
    model = model_lib.VisionSpeech(config)
    weights = params(config) if weights is None else weights
    run = jax.jit(lambda p, a: model.apply({"params": p}, *a, method=method, **kwargs))
    return run(weights, args)
