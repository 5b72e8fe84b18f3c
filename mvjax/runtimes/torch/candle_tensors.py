"""Reads the weights of an exported candle folder under kyuteye_pt's names (reference 4.6 -> 4.3).

Independent of `mvjax.weights`, which wrote them: names are taken apart here, and a GGUF's blocks are
read by the `gguf` package.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from safetensors import torch as safetensors_torch

from mvjax.runtimes.torch import layers
from mvjax.weights import file_names

_XA = "transformer.layers.0.cross_attention."
_SLICE = re.compile(r"depformer\.(\d+)\.(.*)")
_BLOCK = re.compile(r"transformer\.(layers\.\d+\.)(.*)")


def load(path: Path) -> layers.Tensors:
    """Returns {name in kyuteye_pt's layout: tensor}.

    Raises:
      ValueError: if the slices of the depth transformer do not share their norms.
    """
    tensors = (
        _load_gguf(path)
        if path.suffix == file_names.GGUF_SUFFIX
        else safetensors_torch.load_file(path)
    )
    renamed: layers.Tensors = {}
    chunks: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _SLICE.fullmatch(name):
            step = int(match[1])
            named, fused = _depth_name(step, match[2])
            if fused:
                chunks.setdefault(named, {})[step] = tensor
            elif not torch.equal(renamed.setdefault(named, tensor), tensor):
                raise ValueError(f"{path}: {name}: expected the norm of the other slices; damaged")
        else:
            renamed[_name(name)] = tensor
    for named, parts in chunks.items():
        renamed[named] = torch.cat([parts[step] for step in sorted(parts)])
    return renamed


def _name(name: str) -> str:
    """Of all but the depth transformer."""
    if name.startswith("image_prefix."):
        return name
    if name.startswith("emb."):
        return f"audio_{name}"
    for part in ("in_proj_weight", "in_proj_weight_q", "in_proj_weight_kv", "out_proj.weight"):
        if name == _XA + part:
            return f"llm.{_XA}mha.{part}"
    return f"llm.{name}"


def _depth_name(step: int, rest: str) -> tuple[str, bool]:
    """Returns (name, whether the steps are one tensor there)."""
    if match := _BLOCK.fullmatch(rest):
        layer, part = match.groups()
        if part.startswith("gating."):
            return f"depformer.{layer}gating.{step}.{part.removeprefix('gating.')}", False
        return f"depformer.{layer}{part}", part.startswith("self_attn.")
    if rest == "emb.weight":
        return (
            "depformer_text_emb" if step == 0 else f"depformer_emb.{step - 1}"
        ) + ".weight", False
    heads = {"linear_in.weight": "depformer_in", "linear_out.weight": "audio_linears"}
    return f"{heads[rest]}.{step}.weight", False


def _load_gguf(path: Path) -> layers.Tensors:
    """Returns the tensors of a GGUF, and those of its vision file in place of its own."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: needs {error.name!r}: pip install 'mvjax[candle]'"
        ) from error
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = torch.from_numpy(np.array(values))
    image = safetensors_torch.load_file(file_names.vision_file(path))
    return {name: t for name, t in tensors.items() if not name.startswith("image_prefix.")} | image
