"""Writes a Mimi file through the tables that it is read by."""

from pathlib import Path

import numpy as np

from mvjax import tree
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
