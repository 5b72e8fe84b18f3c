"""Writes a trained model as a folder that an upstream runtime can serve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from mvjax import files, tree
from mvjax.config import schema
from mvjax.export import model_card, runtime_configs, targets, weight_files
from mvjax.weights import file_names, mlx


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
    """Writes weights, config files, codec, tokenizer and a model card into the folder `out`, and returns it.

    The folder is made if needed; files of an earlier export are replaced, and its certificate is removed.
    `params` is the whole tree; `dtype` and `quantization` are as in `weight_files.save_exported`.

    Raises:
      ValueError: if the target would run this design wrongly, or a tensor read back differs.
      OSError: if the folder cannot be written.
    """
    weights = _refuse(config.model, target, dtype, quantization)
    codec = files.resolve(config.frozen.codec)
    tokenizer = files.resolve(config.frozen.tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    (out / file_names.CERTIFICATE).unlink(missing_ok=True)
    weight_files.save_exported(
        out / weights, params, config.model, target, dtype=dtype, quantization=quantization
    )
    shutil.copyfile(codec, out / file_names.CODEC)
    shutil.copyfile(tokenizer, out / file_names.TOKENIZER)
    _write_configs(config.model, target, quantization, out)
    card = model_card.text(
        params, config, target, dtype=dtype, quantization=quantization, results=results
    )
    (out / file_names.CARD).write_text(card)
    return out


def _refuse(
    config: schema.ModelConfig,
    target: targets.Target,
    dtype: schema.Dtype | None,
    quantization: targets.Quantization | None,
) -> str:
    """Returns the name of the weight file, if the target can run the model and read the file."""
    name = targets.weight_file(target, quantization)
    if dtype is not None and quantization is not None:
        raise ValueError(
            f"cannot export {name} as {dtype}: {quantization} says what the weights are;"
            " drop one of dtype and quantization"
        )
    problems = targets.refusals(config, target)
    if quantization in ("q8", "q4"):
        problems += mlx.width_refusals(config, quantization)
    runtime = targets.UPSTREAM[target]
    tree.refuse(problems, f"cannot export to {target}: {runtime} would run this model wrongly")
    return name


def _write_configs(
    config: schema.ModelConfig,
    target: targets.Target,
    quantization: targets.Quantization | None,
    out: Path,
) -> None:
    """Writes the runtime's config file and the image encoder's."""
    path = out / file_names.config(target, quantized=quantization is not None)
    match target:
        case "torch":
            path.write_text(yaml.safe_dump(runtime_configs.torch_config(config), sort_keys=False))
            link = out / file_names.TORCH_LINK
            link.unlink(missing_ok=True)
            link.symlink_to(file_names.MODEL)
        case "mlx":
            assert quantization != "q8_0"
            path.write_text(json.dumps(runtime_configs.mlx_config(config, quantization), indent=1))
        case "candle":
            content = runtime_configs.candle_config(config, quantization)
            path.write_text(json.dumps(content, indent=1))
    encoder = json.dumps(runtime_configs.encoder_config(config.siglip), indent=1)
    (out / file_names.ENCODER_CONFIG).write_text(encoder)
