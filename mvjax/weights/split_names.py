"""Other names of Kyutai's attention projections: one tensor a step, or `in_proj.weight`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mvjax.weights import lazy

_SPLIT = re.compile(r"(.*\.self_attn\.)(in|out)_projs\.(\d+)\.weight")
_OTHER = re.compile(r"(.*\.self_attn\.)in_proj\.weight")


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
        if match := _SPLIT.fullmatch(name):
            parent, side, step = match.groups()
            target = parent + ("in_proj_weight" if side == "in" else "out_proj.weight")
            split.setdefault(target, {})[int(step)] = name
            continue
        match = _OTHER.fullmatch(name)
        target = f"{match[1]}in_proj_weight" if match else name
        if target in joined:
            problems.append(f"{target}: found twice, also as {name}")
        joined[target] = tensor
    for target, names in split.items():
        if target in joined:
            problems.append(f"{target}: found twice, also as {names[min(names)]}")
        absent = sorted(set(range(max(names))) - names.keys())
        example = names[min(names)]
        problems += [re.sub(r"projs\.\d+", f"projs.{k}", example) + ": missing" for k in absent]
        joined[target] = lazy.ConcatenatedRows([tensors[names[step]] for step in sorted(names)])
    if problems:
        raise ValueError(
            f"{place}: {len(problems)} tensors do not fit:\n  " + "\n  ".join(problems)
        )
    return joined
