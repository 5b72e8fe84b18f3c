"""LoRA files of moshi-finetune, merged while they are read: W + scaling x B A."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvjax.weights import lazy, safetensors_io

NAMES = ("lora.safetensors",)  # in a folder that moshi-finetune wrote

_FACTOR = re.compile(r"(.+)\.lora_(A|B)\.weight")
_STEP = re.compile(r"(.*\.self_attn\.)(in|out)_projs\.(\d+)")
_CONFIG = "config.json"


class LoraFactors(NamedTuple):
    """One low-rank change: `up` [rows, rank] times `down` [rank, columns]."""

    down: lazy.LazyTensor
    up: lazy.LazyTensor


@dataclasses.dataclass(frozen=True, eq=False)
class LoraMerged:
    """A weight with low-rank changes; several are those of equal parts of its rows.

    The sum is computed in float32 and rounded once, to the dtype that is asked for.
    """

    weight: lazy.LazyTensor
    changes: Sequence[LoraFactors]
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return tuple(self.weight.shape)

    @property
    def dtype(self) -> np.dtype:
        """That of the weight."""
        return np.dtype(self.weight.dtype)

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        """Reads the rows and columns of both factors that the part needs."""
        (first, last), columns = lazy.box(index, self.shape)
        merged = self.weight[index].astype(np.float32)
        rows = self.shape[0] // len(self.changes)
        for k, (down, up) in enumerate(self.changes):
            low, high = max(first, k * rows), min(last, (k + 1) * rows)
            if low < high:
                b = up[(slice(low - k * rows, high - k * rows),)].astype(np.float32)
                a = down[(slice(None), slice(*columns))].astype(np.float32)
                merged[low - first : high - first] += np.float32(self.scaling) * (b @ a)
        return merged


def merged(
    tensors: Mapping[str, lazy.LazyTensor], path: Path, *, scaling: float | None
) -> dict[str, lazy.LazyTensor]:
    """Returns base Moshi's tensors with those of a LoRA file merged in.

    Whole tensors in the file (embeddings, with `ft_embed`) replace those of the base.

    Args:
      tensors: of the base, with fused attention projections.
      path: the LoRA file.
      scaling: None takes `lora_scaling` of the config.json beside the file, which moshi-finetune writes.

    Raises:
      ValueError: naming the file and every tensor that has no counterpart or does not fit.
    """
    factors, replaced = _sorted(safetensors_io.tensors(path))
    scaling = _scaling(path) if scaling is None else scaling
    problems = [f"{name}: no such weight in the base" for name in replaced if name not in tensors]
    result = {**tensors, **replaced}
    for name, halves in factors.items():
        if name not in tensors:
            problems.append(f"{name}: no such weight in the base")
            continue
        changes, misfits = _changes(name, halves, tuple(tensors[name].shape))
        problems += misfits
        if not misfits:
            result[name] = LoraMerged(result[name], changes, scaling)
    if not factors:
        problems.append("expected tensors named *.lora_A.weight and *.lora_B.weight, found none")
    if problems:
        raise ValueError(
            f"{path}: {len(problems)} tensors do not fit the base:\n  " + "\n  ".join(problems)
        )
    return result


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
        weight, step = f"{module}.weight", 0
        if split := _STEP.fullmatch(module):
            weight = split[1] + ("in_proj_weight" if split[2] == "in" else "out_proj.weight")
            step = int(split[3])
        elif module.endswith(".in_proj"):
            weight = f"{module}_weight"
        factors.setdefault(weight, {"A": {}, "B": {}})[half][step] = tensor
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
        changes = _parts(changes[0], down[0].shape[0] // rank)
    rows = shape[0] // len(changes)
    wrong = [
        f"{name}: a part is {[rows, shape[1]]}, got A {[*a.shape]} and B {[*b.shape]}"
        for a, b in changes
        if tuple(a.shape) != (rank, shape[1]) or tuple(b.shape) != (rows, rank)
    ]
    return changes, wrong


def _parts(change: LoraFactors, count: int) -> list[LoraFactors]:
    """Splits fused factors, whose steps are stacked along the rows of both."""
    return [
        LoraFactors(lazy.RowBlock(change.down, k, count), lazy.RowBlock(change.up, k, count))
        for k in range(count)
    ]


def _scaling(path: Path) -> float:
    config = path.parent / _CONFIG
    try:
        return float(json.loads(config.read_text())["lora_scaling"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected lora_scaling in {config} ({error!r}); set frozen.lora_scaling"
            " (moshi-finetune's default is 2.0)"
        ) from error
