"""Writes a trained model as a folder that an upstream runtime can serve."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from mvjax import files, messages, run_folder, tree
from mvjax.config import schema
from mvjax.export import model_card, runtime_configs, targets, weight_files
from mvjax.weights import codecs, file_names, mlx, stated


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

    The folder is made if needed. An earlier export to the same target is replaced once the new one is
    complete; if that fails, it stays as it was. `params` is the whole tree; `dtype` and `quantization` are
    as in `weight_files.save_exported`.

    Raises:
      ValueError: if the target would run this design wrongly, a tensor read back differs, or the folder
        holds an export to another target or other files of these names.
      OSError: if the folder cannot be written.
    """
    weights = refuse(config.model, target, dtype, quantization)
    _refuse_folder(out, target)
    codec = files.resolve(config.frozen.codec)
    tokenizer = files.resolve(config.frozen.tokenizer)
    with _replacing(out, target) as draft:
        weight_files.save_exported(
            draft / weights, params, config.model, target, dtype=dtype, quantization=quantization
        )
        shutil.copyfile(codec, draft / file_names.CODEC)
        codecs.write_sizes(draft, config.codec)
        stated.write(draft / file_names.TALK, config.talk)
        shutil.copyfile(tokenizer, draft / file_names.TOKENIZER)
        card = model_card.text(
            params, config, target, dtype=dtype, quantization=quantization, results=results
        )
        (draft / file_names.CARD).write_text(card)
        _write_configs(config.model, target, quantization, draft)
    return out


@contextlib.contextmanager
def _replacing(out: Path, target: targets.Target) -> Iterator[Path]:
    """Gives an empty folder whose files replace the export in `out` when complete, or else vanish."""
    new = not out.exists()
    draft = out / files.DRAFT
    shutil.rmtree(draft, ignore_errors=True)  # of an export that was killed
    draft.mkdir(parents=True)
    try:
        yield draft
        for name in file_names.owned(target):
            if not os.path.lexists(draft / name):
                (out / name).unlink(
                    missing_ok=True
                )  # the certificate, first; weights stored otherwise
        for path in sorted(draft.iterdir()):
            path.replace(out / path.name)
    except BaseException:
        shutil.rmtree(out if new else draft, ignore_errors=True)
        raise
    draft.rmdir()


def _refuse_folder(out: Path, target: targets.Target) -> None:
    """Refuses a folder whose files are not those of an earlier export to this target."""
    if run_folder.is_run(out) or (out.exists() and not out.is_dir()):
        what = "a run folder" if out.is_dir() else "a file"
        raise ValueError(f"--out {out}: expected a folder for the export alone, got {what}")
    found = file_names.target_of(out)
    names = [name for name in file_names.owned(found or target) if os.path.lexists(out / name)]
    if names and found != target:
        what = "other files" if found is None else f"an export to {found}"
        raise ValueError(
            f"{out}: expected no folder, or an export to {target} to replace, found {what}"
            f" ({messages.names(names)}); give another --out, or delete the folder"
        )


def refuse(
    config: schema.ModelConfig,
    target: targets.Target,
    dtype: schema.Dtype | None,
    quantization: targets.Quantization | None,
) -> str:
    """Returns the name of the weight file, if the target can run the model and read the file.

    Raises:
      ValueError: with every reason why it cannot.
    """
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
    for name, content in runtime_configs.contents(config, target, quantization).items():
        as_yaml = name == file_names.TORCH_CONFIG
        text = (
            yaml.safe_dump(content, sort_keys=False) if as_yaml else json.dumps(content, indent=1)
        )
        (out / name).write_text(text)
    if target == "torch":
        (out / file_names.TORCH_LINK).symlink_to(file_names.MODEL)
