"""Kyutai's int8 files: a weight is int8 and `weight_scb`, the largest magnitude of each of its rows.

Its values are weight x scb / 127, in float32; the dtype is bfloat16 where no other is asked for, because
float32 would take four times the file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from mvjax import tree
from mvjax.weights import lazy

SUFFIX = "_scb"
_STEP = np.float32(7.874015718698502e-3)  # 1 / 127, as bitsandbytes writes it


def dequantized(
    tensors: Mapping[str, lazy.LazyTensor], *, place: str
) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors with each int8 weight and its scales as one.

    Source: moshi/utils/quantize.py, `QLinear`.

    Raises:
      ValueError: naming the place, every int8 weight without scales or with misshapen ones, and scales
        without a weight.
    """
    plain, problems = {}, []
    for name, tensor in tensors.items():
        if name.endswith(SUFFIX):
            if name.removesuffix(SUFFIX) not in tensors:
                problems.append(f"{name}: unexpected, there is no {name.removesuffix(SUFFIX)}")
            continue
        if tensor.dtype != np.int8:
            plain[name] = tensor
            if name + SUFFIX in tensors:
                problems.append(f"{name}: expected int8 beside {name}{SUFFIX}, got {tensor.dtype}")
            continue
        scb = tensors.get(name + SUFFIX)
        if scb is None:
            problems.append(f"{name}{SUFFIX}: missing, expected {[*tensor.shape[:1]]}")
        elif tuple(scb.shape) != tuple(tensor.shape[:1]) or len(tensor.shape) != 2:
            problems.append(f"{name}{SUFFIX}: expected {[*tensor.shape[:1]]}, got {[*scb.shape]}")
        else:
            read = functools.partial(_part, tensor, scb)
            plain[name] = lazy.Computed(tuple(tensor.shape), np.dtype(ml_dtypes.bfloat16), read)
    tree.refuse(problems, f"{place}: {len(problems)} int8 tensors do not fit together")
    return plain


def _part(weight: lazy.LazyTensor, scb: lazy.LazyTensor, part: lazy.Index) -> np.ndarray:
    """Returns float32 values, in the order of operations of `bitsandbytes`, bit for bit."""
    scale = np.asarray(scb[part[:1]], np.float32)[:, None]
    return weight[part].astype(np.float32) * scale * _STEP
