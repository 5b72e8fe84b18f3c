"""LoRA files of moshi-finetune, merged while they are read: W + scaling x B A."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvjax import messages, tree
from mvjax.weights import lazy, safetensors_io, split_names

NAMES = ("lora.safetensors",)  # in a folder that moshi-finetune wrote

_FACTOR = re.compile(r"(.+)\.lora_(A|B)\.weight")


class LoraFactors(NamedTuple):
    """One low-rank change: `up` [rows, rank] times `down` [rank, columns]."""

    down: lazy.LazyTensor
    up: lazy.LazyTensor


def merged(
    tensors: Mapping[str, lazy.LazyTensor], path: Path, *, factor: float
) -> dict[str, lazy.LazyTensor]:
    """Returns base Moshi's tensors, attention projections fused, with factor x those of a LoRA file added.

    Whole tensors in the file (embeddings, with `ft_embed`) replace those of the base.

    Raises:
      ValueError: naming the file and every tensor that has no counterpart or does not fit.
    """
    factors, replaced = _sorted(safetensors_io.tensors(path))
    problems = [f"{name}: no such weight in the base" for name in replaced if name not in tensors]
    result = {**tensors, **replaced}
    for name, halves in factors.items():
        if name not in tensors:
            problems.append(f"{name}: no such weight in the base")
            continue
        changes, misfits = _changes(name, halves, tuple(tensors[name].shape))
        problems += misfits
        if not misfits:
            base = result[name]
            read = functools.partial(_part, base, changes, factor)
            result[name] = lazy.Computed(tuple(base.shape), np.dtype(base.dtype), read)
    if not factors:
        problems.append("expected tensors named *.lora_A.weight and *.lora_B.weight, found none")
    count = messages.counted(len(problems), "tensor does", "tensors do")
    tree.refuse(problems, f"{path}: {count} not fit the base")
    return result


def _part(
    weight: lazy.LazyTensor, changes: Sequence[LoraFactors], factor: float, index: lazy.Index
) -> np.ndarray:
    """Returns a part of a weight with low-rank changes; several are those of equal parts of its rows.

    The sum is computed in float32 and rounded once, to the dtype that is asked for.
    """
    part = weight[index].astype(np.float32)
    first, last = index[0].start, index[0].stop
    rows = weight.shape[0] // len(changes)
    for k, (down, up) in enumerate(changes):
        low, high = max(first, k * rows), min(last, (k + 1) * rows)
        if low < high:
            b = up[(slice(low - k * rows, high - k * rows),)].astype(np.float32)
            a = down[(slice(None), index[1])].astype(np.float32)
            part[low - first : high - first] += np.float32(factor) * (b @ a)
    return part


Halves = dict[str, dict[int, lazy.LazyTensor]]  # {"A" or "B": {step: tensor}}


def _sorted(
    tensors: Mapping[str, lazy.LazyTensor],
) -> tuple[dict[str, Halves], dict[str, lazy.LazyTensor]]:
    """Splits into {name of the fused weight: factors} and whole tensors."""
    factors: dict[str, Halves] = {}
    whole: dict[str, lazy.LazyTensor] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            whole[name] = tensor
            continue
        module, half = match.groups()
        weight, step = split_names.fused_name(f"{module}.weight")
        factors.setdefault(weight, {"A": {}, "B": {}})[half][step or 0] = tensor
    return factors, whole


def _changes(
    name: str, halves: Halves, shape: tuple[int, ...]
) -> tuple[list[LoraFactors], list[str]]:
    """Returns the factors of equal parts of a weight's rows, and what is wrong with them."""
    down, up = halves["A"], halves["B"]
    if len(shape) != 2:
        return [], [f"{name}: expected a matrix in the base, got {[*shape]}"]
    if down.keys() != up.keys() or sorted(down) != list(range(len(down))):
        return [], [f"{name}: expected A and B of the same steps, got {sorted(down)}, {sorted(up)}"]
    changes = [LoraFactors(down[k], up[k]) for k in sorted(down)]
    rank = up[0].shape[1] if len(up[0].shape) == 2 else 0
    if len(changes) == 1 and rank and down[0].shape[0] % rank == 0:
        # fused factors, whose steps are stacked along the rows of both
        count = down[0].shape[0] // rank
        changes = [
            LoraFactors(lazy.row_block(down[0], k, count), lazy.row_block(up[0], k, count))
            for k in range(count)
        ]
    rows = shape[0] // len(changes)
    wrong = [
        f"{name}: a part is {[rows, shape[1]]}, got A {[*a.shape]} and B {[*b.shape]}"
        for a, b in changes
        if tuple(a.shape) != (rank, shape[1]) or tuple(b.shape) != (rows, rank)
    ]
    return changes, wrong


def scaling(path: Path, given: float | None) -> float:
    """Returns the scaling of a LoRA file: the given one, else `lora_scaling` of the config.json beside it."""
    if given is not None:
        return given
    config = path.parent / "config.json"
    try:
        return float(json.loads(config.read_text())["lora_scaling"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected lora_scaling in {config} ({error!r}); set frozen.lora_scaling"
            " (moshi-finetune's default is 2.0)"
        ) from error
