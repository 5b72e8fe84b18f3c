"""Reads the weights of an exported torch or candle folder under kyuteye_mlx's names.

The layouts are those of reference 4.3, 4.6 and 4.5. Independent of `mvjax.weights`, which wrote them: names
are taken apart here, and a GGUF's blocks are read by the `gguf` package.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from safetensors import torch as safetensors_torch

from mvjax.runtimes import folder as folder_lib
from mvjax.weights import file_names, safetensors_io

Tensors = dict[str, torch.Tensor]

# each that matches, one after the other
_NAMES = (
    (r"^llm\.", ""),
    (r"^(audio_)?emb\.", "audio_embs."),
    (r"^image_prefix\.enc\.", "img_embedder."),
    (r"^image_prefix\.", "transformer.image_prefix."),
    (r"(norm\w*)\.alpha$", r"\1.weight"),
    (r"in_proj_weight$", "in_proj.weight"),
    (r"in_proj_weight_(q|kv)$", r"\1_proj.weight"),
    (r"cross_attention\.(?=\w+_proj\.)", "cross_attention.mha."),
    (r"gate\.alpha\.(?=\d)", "gate.alpha.layers."),
    (r"^depformer\.(?=\d)", "depformer.slices."),
    (r"^depformer_in\.(\d+)", r"depformer.slices.\1.linear_in"),
    (r"^audio_linears\.(\d+)", r"depformer.slices.\1.linear_out"),
    (r"^depformer_text_emb\.", "depformer.slices.0.emb."),
    (r"^depformer_emb\.(\d+)", lambda match: f"depformer.slices.{int(match[1]) + 1}.emb"),
    (r"^depformer\.(layers\.\d+\.gating)\.(\d+)", r"depformer.slices.\2.transformer.\1"),
)
_ALL_SLICES = re.compile(r"depformer\.(layers\..*)")  # the steps of kyuteye_pt's depth transformer


def load(config: folder_lib.ExportedConfig) -> Tensors:
    """Returns {name in kyuteye_mlx's layout: tensor as stored}."""
    path, renamed = config.weights, {}
    gguf = path.suffix == file_names.GGUF_SUFFIX
    for name, tensor in (_load_gguf if gguf else _load_safetensors)(path).items():
        for pattern, form in _NAMES:
            name = re.sub(pattern, form, name)
        if match := _ALL_SLICES.fullmatch(name):
            count = config.codebooks_out
            parts = tensor.chunk(count) if "self_attn" in name else [tensor] * count
            for step, part in enumerate(parts):
                renamed[f"depformer.slices.{step}.transformer.{match[1]}"] = part
        elif name.endswith("mha.in_proj.weight"):
            q, kv = tensor[: tensor.shape[1]], tensor[tensor.shape[1] :]
            prefix = name.removesuffix("in_proj.weight")
            renamed |= {f"{prefix}q_proj.weight": q, f"{prefix}kv_proj.weight": kv}
        else:
            renamed[name] = tensor
    return renamed


def _load_safetensors(path: Path) -> Tensors:
    safetensors_io.metadata(path)  # which says what a damaged file lacks
    return safetensors_torch.load_file(path)


def _load_gguf(path: Path) -> Tensors:
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
    image = _load_safetensors(file_names.vision_file(path))
    return {name: t for name, t in tensors.items() if not name.startswith("image_prefix.")} | image
