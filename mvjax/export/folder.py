"""Writes a trained model as a folder that an upstream runtime can serve, and reads it back.

Tensors are made one at a time, as they are written and compared, so that an export takes the memory of the
model that it is given and of its largest parameter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml

from mvjax import files, tree
from mvjax.config import schema
from mvjax.export import model_card, runtime_configs, targets
from mvjax.weights import candle, kyutai, lazy, leaf_view, mlx, placement, rules, safetensors_io

CERTIFICATE_FILE = "certificate.json"

_CONFIG_FILES = {
    ("torch", False): "moshika-vis.yaml",
    ("mlx", False): "config.json",
    ("mlx", True): "config.json",
    ("candle", False): "config-moshika-vis.json",
    ("candle", True): "config-moshika-vis-q8.json",
}
_TORCH_LINK = "model_pt.safetensors"  # what kyuteye_pt opens when its config names no repository
_NUMPY: dict[schema.Dtype, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
_ENCODER = "image/encoder/"


def export(
    params: tree.Tree,
    config: schema.Config,
    target: targets.Target,
    out: Path,
    *,
    dtype: schema.Dtype | None = None,
    quantization: targets.Quantization | None = None,
    results: model_card.RunResults | None = None,
) -> Path:
    """Writes weights, config files, codec, tokenizer and a model card into the folder `out`.

    Args:
      params: the whole parameter tree, adapters and frozen parts.
      config: of the run; its model is what is exported, its frozen files give codec and tokenizer.
      target: the upstream runtime.
      out: made if needed; files of an earlier export are replaced, and its certificate is removed.
      dtype: of the weights, mixed as in upstream's file; None keeps each leaf's.
      quantization: one of the target's.
      results: of the run, for the card.

    Returns:
      The folder.

    Raises:
      ValueError: if the target would run this design wrongly, or a tensor read back differs.
      OSError: if the folder cannot be written.
    """
    _refuse(config.model, target, dtype, quantization)
    codec = files.resolve(config.frozen.codec)
    tokenizer = files.resolve(config.frozen.tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    (out / CERTIFICATE_FILE).unlink(missing_ok=True)
    weights = out / targets.weight_file(target, quantization)
    save_exported(weights, params, config.model, target, dtype=dtype, quantization=quantization)
    shutil.copyfile(codec, out / targets.CODEC_FILE)
    shutil.copyfile(tokenizer, out / targets.TOKENIZER_FILE)
    _write_configs(config.model, target, quantization, out)
    card = model_card.text(
        params, config, target, dtype=dtype, quantization=quantization, results=results
    )
    (out / model_card.FILE).write_text(card)
    return out


def save_exported(
    path: Path,
    params: tree.Tree,
    config: schema.ModelConfig,
    target: targets.Target,
    *,
    dtype: schema.Dtype | None = None,
    quantization: targets.Quantization | None = None,
) -> None:
    """Writes the weights of an export alone, and reads them back; the inverse of `load_exported`.

    Args:
      path: to write; for q8_0 it ends in .gguf, and its vision file is written beside it.
      params: the whole parameter tree.
      config: its sizes.
      target: whose layout.
      dtype: as `export`.
      quantization: one of the target's.

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
    leaves = {
        path: lazy.cast(placement.on_host(values), _kept(path, target, dtype))
        for path, values in tree.flatten(params).items()
    }
    if quantization in ("q8", "q4"):
        return mlx.quantized(leaves, config, quantization, place=place)
    table = _table(config, target, quantization)
    return rules.upstream_views(leaves, table, kyutai.sizes(config), place=place)


def as_stored(
    params: tree.Tree,
    config: schema.ModelConfig,
    target: targets.Target,
    *,
    dtype: schema.Dtype | None = None,
    quantization: targets.Quantization | None = None,
) -> dict[str, leaf_view.LeafView]:
    """Returns {path: leaf}, in float32, as an export of `params` holds it: rounded as the file rounds."""
    tensors = to_tensors(params, config, target, dtype=dtype, quantization=quantization)
    place = f"rounding as {targets.weight_file(target, quantization)}"
    if quantization == "q8_0":
        image = candle.image_tensors(tensors)
        language = {name: t for name, t in tensors.items() if name not in image}
        tensors = {n: candle.gguf_io().Q8RoundTrip(t) for n, t in language.items()} | image
    match target:
        case "torch":
            table, sizes = kyutai.vis_rules(config), kyutai.sizes(config)
            return rules.leaf_views(tensors, table, sizes, place=place)
        case "mlx":
            return mlx.from_tensors(tensors, config, place=place)
        case "candle":
            return candle.from_tensors(tensors, config, place=place)


def load_exported(
    path: str | Path,
    config: schema.ModelConfig,
    target: targets.Target,
    *,
    dtype: np.dtype | type | None = None,
) -> dict[str, Any]:
    """Reads a weight file of a target whole, as the parameter tree in numpy.

    Args:
      path: location of a file that mvjax exported or upstream released, quantized or not.
      config: the sizes that the file must have.
      target: whose layout it has.
      dtype: of the parameters; None keeps the file's. Quantized weights are exact in float32.

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
    """Returns {our path: leaf}, the file's checksums being right; otherwise as `load_exported`."""
    if target == "candle":
        candle.verify(path)
        return candle.open_candle(path, config, dtype=dtype)
    names, look = {
        "torch": (files.WEIGHTS, kyutai.open_vis),
        "mlx": (mlx.NAMES, mlx.open_mlx),
    }[target]
    safetensors_io.verify(files.resolve(path, names=names))
    return look(path, config, dtype=dtype)


def config_file(target: targets.Target, quantization: targets.Quantization | None = None) -> str:
    """Returns upstream's name of the config file."""
    return _CONFIG_FILES[target, quantization is not None]


def assert_written(path: Path, tensors: Mapping[str, lazy.LazyTensor]) -> None:
    """Reads a weight file back and compares it with what was to be written, bit for bit.

    Raises:
      ValueError: naming the file and every tensor that is missing, unexpected or different.
    """
    if path.suffix == candle.GGUF_SUFFIX:
        gguf_io, image = candle.gguf_io(), candle.image_tensors(tensors)
        rounded = {n: gguf_io.Q8RoundTrip(t) for n, t in tensors.items() if n not in image}
        _compare(path, gguf_io.tensors(path), rounded)
        vision = candle.vision_file(path)
        _compare(vision, safetensors_io.tensors(vision), image)
    else:
        _compare(path, safetensors_io.tensors(path), tensors)


def _compare(
    path: Path, found: Mapping[str, lazy.LazyTensor], expected: Mapping[str, lazy.LazyTensor]
) -> None:
    differing = [
        name
        for name in sorted({*expected, *found})
        if name not in found
        or name not in expected
        or not _same_bits(np.asarray(found[name][()]), np.asarray(expected[name][()]))
    ]
    if differing:
        raise ValueError(
            f"{path}: read back, {len(differing)} tensors differ from what was written:"
            f" {differing}; the disk or the file is damaged, export again"
        )


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    raw_a, raw_b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(raw_a, raw_b)


def _refuse(
    config: schema.ModelConfig,
    target: targets.Target,
    dtype: schema.Dtype | None,
    quantization: targets.Quantization | None,
) -> None:
    name = targets.weight_file(target, quantization)
    if dtype is not None and quantization is not None:
        raise ValueError(
            f"cannot export {name} as {dtype}: {quantization} says what the weights are;"
            " drop one of dtype and quantization"
        )
    problems = targets.refusals(config, target)
    if quantization in ("q8", "q4"):
        problems += mlx.width_refusals(config, quantization)
    if problems:
        raise ValueError(
            f"cannot export to {target}: {targets.UPSTREAM[target]} would run this model wrongly:"
            + "".join(f"\n  {problem}" for problem in problems)
        )


def _kept(path: str, target: targets.Target, dtype: schema.Dtype | None) -> np.dtype | type | None:
    """The dtype a leaf is written in; upstream's PyTorch file keeps its encoder in float32."""
    if dtype == "bfloat16" and target == "torch" and path.startswith(_ENCODER):
        return np.float32
    return None if dtype is None else _NUMPY[dtype]


def _table(
    config: schema.ModelConfig,
    target: targets.Target,
    quantization: targets.Quantization | None,
) -> list[rules.Rule]:
    if target == "torch":
        return kyutai.vis_rules(config)
    if target == "mlx":
        return mlx.mlx_rules(config)
    return candle.candle_rules(config, split=quantization is not None)


def _write_configs(
    config: schema.ModelConfig,
    target: targets.Target,
    quantization: targets.Quantization | None,
    out: Path,
) -> None:
    path = out / config_file(target, quantization)
    match target:
        case "torch":
            path.write_text(yaml.safe_dump(runtime_configs.torch_config(config), sort_keys=False))
            link = out / _TORCH_LINK
            link.unlink(missing_ok=True)
            link.symlink_to(targets.MODEL_FILE)
        case "mlx":
            assert quantization != "q8_0"
            path.write_text(json.dumps(runtime_configs.mlx_config(config, quantization), indent=1))
        case "candle":
            content = runtime_configs.candle_config(config, quantization)
            path.write_text(json.dumps(content, indent=1))
    encoder = json.dumps(runtime_configs.encoder_config(config.siglip), indent=1)
    (out / targets.ENCODER_FILE).write_text(encoder)
