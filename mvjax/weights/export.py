"""Writes a trained model as a folder that an upstream runtime can serve, and reads it back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mvjax import config as config_lib
from mvjax import tree
from mvjax.weights import kyutai, locate, mlx, targets


def export(
    params: tree.Tree,
    config: config_lib.Config,
    target: targets.Target,
    out: Path,
    *,
    dtype: np.dtype | type | None = None,
) -> Path:
    """Writes weights, config files, codec, tokenizer and a model card into the folder `out`.

    Args:
      params: the whole parameter tree, adapters and frozen parts.
      config: of the run; its model is what is exported, its frozen files give codec and tokenizer.
      target: "torch" (kyuteye_pt) or "mlx" (kyuteye_mlx).
      out: made if needed; files of an earlier export are replaced.
      dtype: of all tensors; None keeps each leaf's.

    Returns:
      The folder.

    Raises:
      ValueError: if the target would run this design wrongly, or a tensor read back differs.
      OSError: if the folder cannot be written.
    """
    if problems := targets.refusals(config.model, target):
        raise ValueError(
            f"cannot export to {target}: {targets.UPSTREAM[target]} would run this model wrongly:"
            + "".join(f"\n  {problem}" for problem in problems)
        )
    codec = locate.resolve(config.frozen.codec)
    tokenizer = locate.resolve(config.frozen.tokenizer)
    leaves = tree.flatten(params)
    written = {
        p: np.asarray(x) if dtype is None else np.asarray(x, dtype) for p, x in leaves.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    weights = out / targets.MODEL_FILE
    save = kyutai.save_vis if target == "torch" else mlx.save_mlx
    save(weights, tree.unflatten(written), config.model)
    shutil.copyfile(codec, out / targets.CODEC_FILE)
    shutil.copyfile(tokenizer, out / targets.TOKENIZER_FILE)
    _write_configs(config.model, target, out)
    (out / "README.md").write_text(_model_card(config, target, written))
    assert_written(weights, tree.unflatten(written), config.model, target)
    return out


def load_exported(
    path: Path,
    config: config_lib.ModelConfig,
    target: targets.Target,
    *,
    dtype: np.dtype | type | None = None,
) -> dict[str, Any]:
    """Reads the weights of an export back into the parameter tree; dtype None keeps the file's."""
    load = kyutai.load_vis if target == "torch" else mlx.load_mlx
    return load(path, config, dtype=dtype)


def assert_written(
    path: Path, params: tree.Tree, config: config_lib.ModelConfig, target: targets.Target
) -> None:
    """Reads a weight file back and compares it with `params`, bit for bit.

    Raises:
      ValueError: naming the file and every differing parameter.
    """
    found = load_exported(path, config, target)
    tree.assert_same_tree(params, found, place=str(path))
    have = tree.flatten(found)
    differing = [p for p, leaf in tree.flatten(params).items() if not _same_bits(leaf, have[p])]
    if differing:
        raise ValueError(
            f"{path}: read back, {len(differing)} parameters differ from what was written:"
            f" {differing}; the disk or the file is damaged, export again"
        )


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    raw_a, raw_b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(raw_a, raw_b)


def _write_configs(config: config_lib.ModelConfig, target: targets.Target, out: Path) -> None:
    path = out / targets.CONFIG_FILE[target]
    if target == "torch":
        path.write_text(yaml.safe_dump(targets.torch_config(config), sort_keys=False))
    else:
        path.write_text(json.dumps(targets.mlx_config(config), indent=1))
    encoder = json.dumps(targets.encoder_config(config.siglip), indent=1)
    (out / targets.ENCODER_FILE).write_text(encoder)


def _model_card(
    config: config_lib.Config, target: targets.Target, leaves: dict[str, np.ndarray]
) -> str:
    model, upstream = config.model, targets.UPSTREAM[target]
    count = sum(leaf.size for leaf in leaves.values())
    adapters, _ = tree.partition(tree.unflatten(leaves), config.train.trained)
    trained = sum(leaf.size for leaf in tree.flatten(adapters).values())
    dtypes = sorted({leaf.dtype.name for leaf in leaves.values()})
    deviations = "\n".join(f"- {note}" for note in targets.deviations(model, target))
    return _CARD.format(
        upstream=upstream,
        count=count,
        trained=trained,
        dtypes=", ".join(dtypes),
        backbone=model.backbone,
        depformer=model.depformer,
        siglip=model.siglip,
        adapters=model.cross_attention,
        frozen=config.frozen,
        use=_USE[target],
        deviations=deviations,
    )


_USE = {
    "torch": (
        "    from mvjax.stream import torch_runtime\n"
        '    runtime = torch_runtime.Runtime("this folder")\n\n'
        "kyuteye_pt's server, inside this folder: `ln -s model.safetensors model_pt.safetensors`\n"
        "(the name it opens when `hf_repo` is null), then its command `server moshika-vis.yaml`."
    ),
    "mlx": (
        "    from mvjax.stream import mlx_runtime\n"
        '    runtime = mlx_runtime.Runtime("this folder")\n\n'
        "kyuteye_mlx's server, inside this folder (it opens `siglip448.config` from there):\n"
        "`python -m kyuteye_mlx.local_web --moshi-weights model.safetensors"
        f" --mimi-weights {targets.CODEC_FILE} --tokenizer {targets.TOKENIZER_FILE}`."
    ),
}

_CARD = """# A vision-speech model, in the layout of {upstream}

Written by mvjax. {count:,} parameters, of which {trained:,} were trained; stored as {dtypes}.
`certificate.json`, once written, compares this file, reloaded, with the JAX model that wrote it.

| part | sizes |
|---|---|
| backbone | `{backbone}` |
| depth transformer | `{depformer}` |
| image encoder | `{siglip}` |
| cross-attention | `{adapters}` |
| frozen files | `{frozen}` |

## Use

{use}

## Where {upstream} differs from the model as trained

{deviations}
"""
