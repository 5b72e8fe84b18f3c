"""The weight file of an export: its tensors, made one at a time, written, read back and loaded again.

Tensors are made as they are written and compared, so that an export takes the memory of the model that it is
given and of its largest parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mvjax import files, messages, tree
from mvjax.config import schema
from mvjax.export import targets
from mvjax.weights import (
    candle,
    file_names,
    kyutai,
    lazy,
    leaf_view,
    mlx,
    placement,
    rules,
    safetensors_io,
)

_NUMPY: dict[schema.Dtype, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def save_exported(
    path: Path,
    params: tree.Tree,
    config: schema.ModelConfig,
    target: targets.Target,
    *,
    dtype: schema.Dtype | None = None,
    quantization: targets.Quantization | None = None,
) -> None:
    """Writes a weight file and compares what it reads back; the inverse of `load_exported`.

    With q8_0 the path ends in .gguf, and its vision file is written beside it. A dtype is mixed as in
    upstream's file; None keeps each leaf's.

    Raises:
      ValueError: for a design that the layout has no place for, or if a tensor read back differs.
    """
    tensors = to_tensors(params, config, target, dtype=dtype, quantization=quantization)
    write = candle.write if target == "candle" else safetensors_io.write
    write(path, tensors)
    assert_written(path, tensors)


def to_tensors(
    params: tree.Tree,
    config: schema.ModelConfig,
    target: targets.Target,
    *,
    dtype: schema.Dtype | None = None,
    quantization: targets.Quantization | None = None,
) -> dict[str, lazy.LazyTensor]:
    """Returns {name in the file: tensor}, made when read; those of a GGUF in the leaves' dtype."""
    place = f"writing {targets.weight_file(target, quantization)}"
    _refuse_layout(config, target)
    leaves = {
        path: lazy.cast(placement.on_host(values), _leaf_dtype(path, target, dtype))
        for path, values in tree.flatten(params).items()
    }
    if quantization in ("q8", "q4"):
        return mlx.quantized(leaves, config, quantization, place=place)
    match target:
        case "torch":
            table = kyutai.vis_rules(config)
        case "mlx":
            table = mlx.mlx_rules(config)
        case "candle":
            table = candle.candle_rules(config, split=quantization is not None)
    return rules.upstream_views(leaves, table, kyutai.sizes(config), place=place)


def as_stored(
    params: tree.Tree,
    config: schema.ModelConfig,
    target: targets.Target,
    *,
    dtype: schema.Dtype | None = None,
    quantization: targets.Quantization | None = None,
) -> dict[str, leaf_view.LeafView]:
    """Returns {path: leaf view}, float32, of `params` after the rounding that the file's format does."""
    tensors = to_tensors(params, config, target, dtype=dtype, quantization=quantization)
    place = f"rounding as {targets.weight_file(target, quantization)}"
    match target:
        case "torch":
            table, sizes = kyutai.vis_rules(config), kyutai.sizes(config)
            return rules.leaf_views(tensors, table, sizes, place=place)
        case "mlx":
            return mlx.from_tensors(tensors, config, place=place)
        case "candle":
            tensors = candle.round_trip(tensors) if quantization else tensors
            return candle.from_tensors(tensors, config, place=place)


def how_stored(
    folder: Path, params: tree.Tree, config: schema.ModelConfig, target: targets.Target
) -> dict[str, Any]:
    """Returns the dtype and the quantization, as `save_exported` takes them, that a folder was written with.

    `params` are the run's. Where a file's dtypes fit none, dtype is None: as they were trained.

    Raises:
      ValueError: if there are no weights, or not all that their file names.
    """
    for quantization, name in file_names.QUANTIZED[target].items():
        if (folder / name).is_file():
            return {"dtype": None, "quantization": quantization}
    path = folder / file_names.MODEL
    if not path.is_file():
        raise ValueError(f"{path}: expected the weights, found no such file; export again")
    found = _dtypes(safetensors_io.tensors(path))
    for dtype in (None, *_NUMPY):
        if _dtypes(to_tensors(params, config, target, dtype=dtype)) == found:
            return {"dtype": dtype, "quantization": None}
    return {"dtype": None, "quantization": None}


def load_exported(
    path: str | Path,
    config: schema.ModelConfig,
    target: targets.Target,
    *,
    dtype: np.dtype | type | None = None,
) -> dict[str, Any]:
    """Reads a weight file of a target whole, as the parameter tree in numpy.

    mvjax exported it or upstream released it, quantized or not. `dtype` None keeps the file's; quantized
    weights are exact in float32.

    Raises:
      ValueError: naming the file, and every missing, unexpected, misshapen or damaged tensor.
    """
    views = open_exported(path, config, target, dtype=dtype)
    return tree.unflatten(rules.read_leaves(views, place=str(path)))


def open_exported(
    path: str | Path,
    config: schema.ModelConfig,
    target: targets.Target,
    *,
    dtype: np.dtype | type | None = None,
) -> dict[str, leaf_view.LeafView]:
    """Returns {our path: leaf view} after comparing the file's checksums; otherwise as `load_exported`."""
    _refuse_layout(config, target)
    if target == "candle":
        candle.verify(path)
        return candle.open_candle(path, config, dtype=dtype)
    names, open_file = {
        "torch": (files.WEIGHTS, kyutai.open_vis),
        "mlx": (mlx.NAMES, mlx.open_mlx),
    }[target]
    safetensors_io.verify(files.resolve(path, names=names))
    return open_file(path, config, dtype=dtype)


def assert_written(path: Path, tensors: Mapping[str, lazy.LazyTensor]) -> None:
    """Reads a weight file back and compares it with what was to be written, bit for bit.

    Raises:
      ValueError: naming the file and every tensor that is missing, unexpected or different.
    """
    if path.suffix == file_names.GGUF_SUFFIX:
        written, expected = candle.open_gguf(path), candle.round_trip(tensors)
    else:
        written, expected = safetensors_io.tensors(path), tensors
    differing = [
        name
        for name in sorted({*expected, *written})
        if name not in written
        or name not in expected
        or not _same_bits(np.asarray(written[name][()]), np.asarray(expected[name][()]))
    ]
    if differing:
        raise ValueError(
            f"{path}: read back, {messages.counted(len(differing), 'tensor differs', 'tensors differ')}"
            " from what was written:"
            f" {differing}; the disk or the file is damaged, export again"
        )


def _dtypes(tensors: Mapping[str, lazy.LazyTensor]) -> dict[str, np.dtype]:
    return {name: np.dtype(tensor.dtype) for name, tensor in tensors.items()}


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    raw_a, raw_b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(raw_a, raw_b)


def _refuse_layout(config: schema.ModelConfig, target: targets.Target) -> None:
    """Refuses what a layout has no place for; the PyTorch layout has one for every design."""
    if target != "torch" and (problems := targets.refusals(config, target)):
        tree.refuse(problems, f"no {target} layout for this design")


def _leaf_dtype(
    path: str, target: targets.Target, dtype: schema.Dtype | None
) -> np.dtype | type | None:
    """The dtype a leaf is written in; upstream's PyTorch file keeps its encoder in float32."""
    if dtype == "bfloat16" and target == "torch" and path.startswith("image/encoder/"):
        return np.float32
    return None if dtype is None else _NUMPY[dtype]
