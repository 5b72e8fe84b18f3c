"""Other names of Kyutai's attention projections: one tensor a step, or `in_proj.weight`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mvjax import messages, tree
from mvjax.weights import lazy

_SPLIT = re.compile(r"(.*\.self_attn\.)(in|out)_projs\.(\d+)\.weight")


def fused_name(name: str) -> tuple[str, int | None]:
    """Returns the name of a tensor with the steps fused, and which step this one is, if it is one."""
    if match := _SPLIT.fullmatch(name):
        parent, side, step = match.groups()
        return parent + ("in_proj_weight" if side == "in" else "out_proj.weight"), int(step)
    return re.sub(r"(\.self_attn\.in_proj)\.weight$", r"\1_weight", name), None


def fused(tensors: Mapping[str, lazy.LazyTensor], *, place: str) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors under `in_proj_weight` and `out_proj.weight`, steps joined along the rows.

    Source: moshi/modules/transformer.py, `StreamingMultiheadAttention._load_hook`, the other way.

    Raises:
      ValueError: naming the place, and every tensor under two names or step that is missing.
    """
    joined: dict[str, lazy.LazyTensor] = {}
    split: dict[str, dict[int, str]] = {}
    problems = []
    for name, tensor in tensors.items():
        target, step = fused_name(name)
        if step is not None:
            split.setdefault(target, {})[step] = name
            continue
        if target in joined:
            problems.append(f"{target}: found twice, also as {name}")
        joined[target] = tensor
    for target, names in split.items():
        example = names[min(names)]
        if target in joined:
            problems.append(f"{target}: found twice, also as {example}")
        absent = sorted(set(range(max(names))) - names.keys())
        problems += [re.sub(r"projs\.\d+", f"projs.{k}", example) + ": missing" for k in absent]
        joined[target] = lazy.concatenated([tensors[names[step]] for step in sorted(names)])
    misfits = messages.counted(len(problems), "tensor does", "tensors do")
    tree.refuse(problems, f"{place}: {misfits} not fit")
    return joined
