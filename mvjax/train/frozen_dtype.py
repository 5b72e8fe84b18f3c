"""The dtype of frozen parameters during training: as stored, bfloat16, or int8 with scales.

int8 is symmetric, per output channel, rounded to nearest: kernel = code x scale, scale = largest magnitude
/ 127. Quantizing a file that is int8 by rows already (Kyutai's) gives the same codes. Embeddings, norms,
biases and the image encoder are not quantized; the encoder's matrices are bfloat16. Evaluation and export use
the files as they are. Not qwix 0.1.8 or aqtp 0.9.0: they intercept calls of Flax layers and replace a weight
by a container, but here a tree of (path, array) is loaded, sharded, hashed and checked by path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int8

from mvjax import tree
from mvjax.config import schema
from mvjax.train import sharding
from mvjax.weights import lazy, placement

_MOSHI = ("backbone/", "depformer/")
_MATRIX = r".*/(kernel|embedding)"
# (path regex of a kernel, its contracted axes, counted from the last)
_QUANTIZED_KERNELS: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r".*/attn/qkv/kernel", (-4,)),  # D 3 N H
    (r".*/attn/out/kernel", (-3, -2)),  # N H D
    (r".*/mlp/in/kernel", (-3,)),  # D 2 F
    (r".*/mlp/out/kernel", (-2,)),  # F D
    (r"backbone/text_head/kernel", (-2,)),  # D V
    (r"depformer/(in|heads)/kernel", (-2,)),  # Q D d, and Q d C
)
_CODES = 127


def contracted(path: str) -> tuple[int, ...] | None:
    """Returns the contracted axes of a kernel that int8 quantizes; None for any other parameter."""
    if not path.startswith(_MOSHI):
        return None
    return next((axes for rule, axes in _QUANTIZED_KERNELS if re.fullmatch(rule, path)), None)


def abstract_frozen_params(run: schema.Config, shapes: tree.Tree) -> dict[str, Any]:
    """Returns ShapeDtypeStructs of the frozen parameters after `train.frozen_dtype` is applied.

    A bfloat16 model is assumed to have Moshi files in bfloat16; those of the encoder are float32.
    """
    abstract = {}
    for path, leaf in tree.flatten(shapes).items():
        axes = contracted(path) if run.train.frozen_dtype == "int8" else None
        if axes is not None:
            abstract |= _structs(path, jax.eval_shape(lambda x, a=axes: quantize(x, a), leaf))
        else:
            stored = run.model.dtype if path.startswith(_MOSHI) else "float32"
            abstract[path] = jax.ShapeDtypeStruct(leaf.shape, _narrowed(path, stored, run))
    return tree.unflatten(abstract)


def place(run: schema.Config, leaves: Mapping[str, lazy.LazyTensor], mesh: Mesh) -> dict[str, Any]:
    """Returns the frozen tree on the devices of a mesh; at most one leaf is there unquantized at a time."""
    flat: dict[str, Any] = {}
    for path, leaf in leaves.items():
        axes = contracted(path) if run.train.frozen_dtype == "int8" else None
        placed = tree.flatten(sharding.shardings({path: leaf}, mesh))
        dtype = _narrowed(path, leaf.dtype, run) if axes is None else None
        whole = placement.place({path: leaf}, placed, dtype=dtype)[path]
        flat |= {path: whole} if axes is None else _quantized(path, whole, axes, mesh)
    return tree.unflatten(flat)


def quantize(
    kernel: Float[Array, "*axes"], axes: tuple[int, ...]
) -> tuple[Int8[Array, "*axes"], Float32[Array, "*channels"]]:
    """Returns (codes, scale), where the scale has size 1 along the contracted axes."""
    values = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(values), axis=axes, keepdims=True) / _CODES
    codes = jnp.round(values / jnp.where(scale > 0, scale, 1.0))
    return codes.astype(jnp.int8), scale


def _quantized(path: str, kernel: Array, axes: tuple[int, ...], mesh: Mesh) -> dict[str, Any]:
    """Quantizes one layer (or level) at a time, so that no whole leaf exists in float32."""

    def run(kernel: Array) -> tuple[Array, Array]:
        if kernel.ndim == -min(axes):
            return quantize(kernel, axes)
        return jax.lax.map(lambda part: quantize(part, axes), kernel)

    shapes = _structs(path, jax.eval_shape(run, kernel))
    placed = tree.flatten(sharding.shardings(shapes, mesh))
    out = tuple(placed[name] for name in shapes)
    return _structs(path, jax.jit(run, out_shardings=out, donate_argnums=0)(kernel))


def _structs(path: str, pair: tuple[Any, Any]) -> dict[str, Any]:
    return dict(zip((path, path.removesuffix("kernel") + "scale"), pair))


def _narrowed(path: str, dtype: Any, run: schema.Config) -> Any:
    """Returns bfloat16 for matrices, unless `as stored`; norms and biases, which are small, keep theirs."""
    narrow = run.train.frozen_dtype != "as stored" and re.fullmatch(_MATRIX, path) is not None
    return jnp.dtype(jnp.bfloat16 if narrow else dtype)
