"""Writes Mimi files through the tables that they are read by."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mvjax import tree
from mvjax.codec import mimi as mimi_codec
from mvjax.config import schema
from mvjax.weights import mimi, rules, safetensors_io


def write(path: Path, params: tree.Tree, config: schema.MimiConfig) -> None:
    """The parameters of `codec.mimi.Mimi` under the names of the released file, every codebook trained."""
    axes, flags = mimi.sizes(config), mimi.flag_rules()
    shapes = rules.leaf_shapes(flags, axes)
    flat = tree.flatten(params) | {p: np.ones(shape, np.float32) for p, shape in shapes.items()}
    safetensors_io.write(
        path, rules.upstream_views(flat, mimi.mimi_rules(config) + flags, axes, place="x")
    )


def write_random(path: Path, config: schema.MimiConfig) -> None:
    """A file of the config's structure with random values that leave no part without influence."""
    audio = jnp.zeros((1, config.frame_samples))
    shapes = jax.eval_shape(mimi_codec.Mimi(config).init, jax.random.key(0), audio)["params"]
    random = np.random.default_rng(0)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("cluster_usage"):
            return random.uniform(0.5, 3.0, shape).astype(np.float32)
        noise = random.standard_normal(shape, dtype=np.float32)
        if name.endswith("embedding_sum"):
            return noise
        if not name.endswith("kernel"):
            return noise * np.float32(0.3)
        fan_in = shape[1] if "blocks" in name else np.prod(shape[:-1])
        fan_in = shape[0] if name.startswith("upsample") else fan_in
        return noise * np.float32(fan_in**-0.5)

    flat = {name: values(name, leaf.shape) for name, leaf in tree.flatten(shapes).items()}
    write(path, tree.unflatten(flat), config)
