"""Models of given sizes without weights: random values of unit variance in activations, for latency."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from mvjax import gates, tree
from mvjax.config import schema
from mvjax.export import folder as export_folder
from mvjax.export import targets
from mvjax.weights import kyutai, lazy, rules

Size = Literal["tiny", "mid", "7b"]

_ADAPTERS = functools.partial(schema.CrossAttentionConfig, image_norm="mean_square")
SIZES: dict[Size, schema.ModelConfig] = {
    "tiny": schema.ModelConfig(
        backbone=schema.BackboneConfig(width=512, layers=2, heads=4, hidden=1408),
        depformer=schema.DepformerConfig(width=128, layers=1, heads=2, hidden=384),
        siglip=schema.SiglipConfig(width=32, layers=1, heads=2, hidden=64, image_size=112),
        cross_attention=_ADAPTERS(gate=gates.Conditional(hidden=64)),
    ),
    # 347 M
    "mid": schema.ModelConfig(
        backbone=schema.BackboneConfig(width=1024, layers=8, heads=8, hidden=2816),
        depformer=schema.DepformerConfig(width=512, layers=4, heads=8, hidden=1408),
        siglip=schema.SiglipConfig(width=64, layers=1, heads=4, hidden=128),
        cross_attention=_ADAPTERS(gate=gates.Conditional(hidden=128)),
    ),
    "7b": schema.ModelConfig(cross_attention=_ADAPTERS()),  # as released: 8.3 B with the encoder
}
_BLOCK = 2**20  # values that repeat
_ATTENTION = r".*/(attn|MultiHeadDotProductAttention_0)|xa|.*/xa"
# (path of a kernel, its contracted axes, counted from the last); of the others it is the last but one
_CONTRACTED: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r".*/attn/qkv/kernel", (-4,)),  # D 3 N H
    (rf"({_ATTENTION})/out/kernel", (-3, -2)),  # N H D
    (rf"({_ATTENTION})/(q|k|v|query|key|value)/kernel", (-3,)),  # D N H
    (r".*/mlp/in/kernel", (-3,)),  # D 2 F
    (r"image/encoder/embedding/kernel", (-4, -3, -2)),  # pixels, colors, E
)


def leaves(model: schema.ModelConfig, dtype: schema.Dtype) -> dict[str, lazy.LazyTensor]:
    """Returns {path: values}, made when they are read."""
    shapes = rules.leaf_shapes(kyutai.vis_rules(model), kyutai.sizes(model))
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    return {path: _leaf(path, shape, kind) for path, shape in shapes.items()}


def write(model: schema.ModelConfig, target: targets.Target, folder: Path, **how: Any) -> Path:
    """Exports random values for a target, with empty files for codec and tokenizer; returns the folder.

    `how` is as for `export`, and `dtype` (default float32).
    """
    folder.mkdir(parents=True, exist_ok=True)
    nothing = folder / "none"
    nothing.write_bytes(b"")
    frozen = schema.FrozenFiles("", "", str(nothing), str(nothing))
    params = tree.unflatten(leaves(model, how.get("dtype") or "float32"))
    run = schema.Config(frozen=frozen, model=model)
    return export_folder.export(params, run, target, folder / target, **how)


def int8(
    path: str, shape: tuple[int, ...], contracted: tuple[int, ...]
) -> tuple[lazy.Computed, lazy.Computed]:
    """Returns (codes, scale) of a kernel that int8 quantizes, over its contracted axes."""

    def codes(part: lazy.Index) -> np.ndarray:
        return _repeated(lambda x: (x * 40).clip(-127, 127).astype(np.int8), 0, shape, part)

    last = len(shape)
    small = tuple(1 if i - last in contracted else size for i, size in enumerate(shape))
    scale = math.prod(shape[i] for i in contracted) ** -0.5 / 40

    def scales(part: lazy.Index) -> np.ndarray:
        return np.full(small, scale, np.float32)[part]

    return (
        lazy.Computed(shape, np.dtype(np.int8), codes),
        lazy.Computed(small, np.dtype(np.float32), scales),
    )


def _leaf(path: str, shape: tuple[int, ...], dtype: np.dtype) -> lazy.Computed:
    return lazy.Computed(shape, dtype, functools.partial(_values, path, shape, dtype))


def _values(path: str, shape: tuple[int, ...], dtype: np.dtype, part: lazy.Index) -> np.ndarray:
    center, scale = 0.0, 0.0
    if path.endswith("scale"):
        center, scale = 1.0, 0.1
    elif path.endswith("embedding"):
        scale = 0.2
    elif not path.endswith("bias"):
        axes = next((axes for rule, axes in _CONTRACTED if re.fullmatch(rule, path)), (-2,))
        scale = math.prod(shape[axis] for axis in axes) ** -0.5
    return _repeated(
        lambda x: (x * np.float32(scale) + np.float32(center)).astype(dtype),
        len(path),
        shape,
        part,
    )


def _repeated(
    made: Callable[[np.ndarray], np.ndarray], shift: int, shape: tuple[int, ...], part: lazy.Index
) -> np.ndarray:
    """Returns a part of noise that repeats, shifted; what lies before and after it is not made."""
    start, axis, count = 0, 0, 1
    for axis, size in enumerate(shape):
        rows = range(size)[part[axis]]
        start += rows.start * math.prod(shape[axis + 1 :])
        if (count := len(rows)) != 1:
            break
    block = np.roll(_noise(), shift - start)[: count * math.prod(shape[axis + 1 :])]
    whole = np.resize(made(block), (*(1 for _ in shape[:axis]), count, *shape[axis + 1 :]))
    return whole[(..., *part[axis + 1 :])] if shape else whole.reshape(())


@functools.cache
def _noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(_BLOCK, np.float32)
