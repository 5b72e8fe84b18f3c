"""Reads the weights of an exported MLX folder as kyuteye_mlx does: build, quantize, load strictly.

The modules are made from the sizes alone, so a tensor that is missing, misnamed or misshapen, or that is
quantized where upstream's `nn.quantize` would not, is an error of MLX's own loader.
"""

from __future__ import annotations

import re

import mlx.core as mx
import mlx.nn as nn
from mlx import utils

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import network
from mvjax.weights import safetensors_io

Arrays = dict[str, mx.array]
Modules = dict[str, nn.Module]

_ENCODER = "img_embedder."
_SHARED = re.compile(r"\.cross_attention\.mha\.")


def load(config: folder_lib.ExportedConfig, *, dtype: mx.Dtype | None, dequantized: bool) -> Arrays:
    """Returns {name: array}: the image encoder in float32, codes, scales and biases unless `dequantized`.

    The other floats are in `dtype`, or in that of the language model's file. The projections that all layers
    share are under the names of layer 0.

    Raises:
      ValueError: naming the file, and what its tensors lack.
    """
    safetensors_io.metadata(config.weights)  # which says what a damaged file lacks
    loaded = mx.load(str(config.weights))
    assert isinstance(loaded, dict)
    encoder = {name: loaded.pop(name) for name in list(loaded) if name.startswith(_ENCODER)}
    try:
        width = encoder[f"{_ENCODER}model.post_layernorm.weight"].size
        language = modules(config, loaded, image_width=width)
        if scheme := config.quantized:
            nn.quantize(language, group_size=scheme.group_size, bits=scheme.bits)
        language.load_weights(list(repeated(loaded, config.layers).items()), strict=True)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{config.weights}: not as its config says: {error}; export again"
        ) from error
    dtype = dtype or loaded.get("text_linear.scales", loaded["text_linear.weight"]).dtype
    encoder = {name: array.astype(mx.float32) for name, array in encoder.items()}
    named: Arrays = {}
    leaves = utils.tree_flatten(language.leaf_modules(), is_leaf=nn.Module.is_module)
    for path, module in leaves:
        assert isinstance(module, nn.Module)
        if _SHARED.search(path) and not path.startswith(network.SHARED):
            continue
        arrays: Arrays = dict(module.parameters())  # pyright: ignore[reportAssignmentType]
        if dequantized and "scales" in arrays:
            scales, biases = (arrays.pop(part).astype(mx.float32) for part in ("scales", "biases"))
            arrays["weight"] = mx.dequantize(
                arrays["weight"], scales, biases, group_size=module.group_size, bits=module.bits
            )
        named |= {f"{path}.{part}": array for part, array in arrays.items()}
    return encoder | {
        name: array if array.dtype == mx.uint32 else array.astype(dtype)
        for name, array in named.items()
    }


def repeated(tensors: Arrays, layers: int) -> Arrays:
    """Adds the shared projections of layer 0 to the other layers, in place of theirs."""
    shared = network.SHARED
    first = {n.removeprefix(shared): t for n, t in tensors.items() if n.startswith(shared)}
    copies = {
        f"{shared.replace('.0.', f'.{layer}.')}{part}": tensor
        for layer in range(1, layers)
        for part, tensor in first.items()
    }
    return tensors | copies


def modules(config: folder_lib.ExportedConfig, tensors: Arrays, *, image_width: int) -> nn.Module:
    """Returns the language model; of the tensors only norms and numbers of rows are looked at."""
    width = tensors["out_norm.weight"].size
    flat: Modules = {
        "text_emb": nn.Embedding(config.text_vocab + 1, width),
        "out_norm": nn.RMSNorm(width),
        "text_linear": _linear(width, config.text_vocab),
        "transformer.image_prefix.proj_xa": nn.Linear(image_width, width),
        "transformer.image_prefix.norm_xa": nn.RMSNorm(width),
    }
    for k in range(len(config.delays) - 1):
        flat[f"audio_embs.{k}"] = nn.Embedding(config.audio_vocab + 1, width)
    for i in range(config.layers):
        p = f"transformer.layers.{i}."
        flat |= _block(p, width, tensors)
        flat[f"{p}norm_cross"] = nn.RMSNorm(width)
        for part, out in (("q_proj", width), ("kv_proj", 2 * width), ("out_proj", width)):
            flat[f"{p}cross_attention.mha.{part}"] = _linear(width, out)
        if config.gate == "conditional":
            gate = f"{p}cross_attention.gate.alpha.layers."
            hidden = len(tensors[f"{gate}0.weight"])
            flat[f"{gate}0"] = _linear(width, hidden)
            flat[f"{gate}1"] = nn.ReLU()
            flat[f"{gate}2"] = _linear(hidden, width)
    for step in range(config.codebooks_out):
        p = f"depformer.slices.{step}."
        narrow = len(tensors[f"{p}linear_in.weight"])
        ids = config.audio_vocab if step else config.text_vocab
        flat[f"{p}emb"] = nn.Embedding(ids + 1, narrow)
        flat[f"{p}linear_in"] = _linear(width, narrow)
        flat[f"{p}linear_out"] = _linear(narrow, config.audio_vocab)
        for i in range(config.depth_layers):
            flat |= _block(f"{p}transformer.layers.{i}.", narrow, tensors)
    root = nn.Module()
    for name, child in utils.tree_unflatten(list(flat.items())).items():
        setattr(root, name, child)
    return root


def _block(p: str, width: int, tensors: Arrays) -> Modules:
    """A layer without cross-attention."""
    hidden = len(tensors[f"{p}gating.linear_in.weight"]) // 2
    return {
        f"{p}norm1": nn.RMSNorm(width),
        f"{p}norm2": nn.RMSNorm(width),
        f"{p}self_attn.in_proj": _linear(width, 3 * width),
        f"{p}self_attn.out_proj": _linear(width, width),
        f"{p}gating.linear_in": _linear(width, 2 * hidden),
        f"{p}gating.linear_out": _linear(hidden, width),
    }


def _linear(width: int, out: int) -> nn.Linear:
    return nn.Linear(width, out, bias=False)
