"""Reads the weights of an exported MLX folder as kyuteye_mlx does: build, quantize, load strictly.

The modules are made from the sizes alone, so a tensor that is missing, misnamed or misshapen, or that is
quantized where upstream's `nn.quantize` would not, is an error of MLX's own loader.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx import utils

from mvjax.runtimes import folder as folder_lib

Arrays = dict[str, mx.array]

_ENCODER = "img_embedder."
SHARED = "transformer.layers.0.cross_attention.mha."


class MlxWeights(dict[str, mx.array]):
    """{name: array}, and how the codes among them were made.

    Args:
      arrays: floats in float32, and codes.
      quantized: None if there are no codes.
    """

    def __init__(self, arrays: Arrays, quantized: folder_lib.Quantized | None = None) -> None:
        super().__init__(arrays)
        self.quantized = quantized

    @property
    def bits(self) -> int:
        """Of a code."""
        assert self.quantized is not None
        return self.quantized.bits

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        assert self.quantized is not None
        return self.quantized.group_size


def load(config: folder_lib.ExportedConfig, *, dequantized: bool) -> MlxWeights:
    """Returns {name: array}, floats in float32; codes, scales and biases unless `dequantized`.

    Raises:
      ValueError: naming the file, and what its tensors lack.
    """
    loaded = mx.load(str(config.weights))
    assert isinstance(loaded, dict)
    encoder = {name: loaded.pop(name) for name in list(loaded) if name.startswith(_ENCODER)}
    try:
        language = modules(config, loaded, image_width=_image_width(encoder))
        if config.quantized is not None:
            scheme = config.quantized
            nn.quantize(language, group_size=scheme.group_size, bits=scheme.bits)
        language.load_weights(list(repeated(loaded, config.layers).items()), strict=True)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{config.weights}: not as its config says: {error}; export again"
        ) from error
    named = {}
    for path, module in _leaf_modules(language):
        arrays: Arrays = dict(module.parameters())  # pyright: ignore[reportAssignmentType]
        if dequantized and "scales" in arrays:
            arrays = _dequantized(module, arrays)
        named |= {f"{path}.{part}": array for part, array in arrays.items()}
    arrays = {
        name: array if array.dtype == mx.uint32 else array.astype(mx.float32)
        for name, array in (named | encoder).items()
    }
    return MlxWeights(arrays, config.quantized)


def _leaf_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns (path, module) of all that hold parameters."""
    leaves = utils.tree_flatten(root.leaf_modules(), is_leaf=nn.Module.is_module)
    return [(str(path), module) for path, module in leaves if isinstance(module, nn.Module)]


def _dequantized(module: nn.Module, arrays: Arrays) -> Arrays:
    scales, biases = (arrays.pop(part).astype(mx.float32) for part in ("scales", "biases"))
    weight = mx.dequantize(
        arrays.pop("weight"), scales, biases, group_size=module.group_size, bits=module.bits
    )
    return arrays | {"weight": weight}


def repeated(tensors: Arrays, layers: int) -> Arrays:
    """Adds the shared projections of layer 0 to the other layers, in place of theirs."""
    first = {n.removeprefix(SHARED): t for n, t in tensors.items() if n.startswith(SHARED)}
    copies = {
        f"{SHARED.replace('.0.', f'.{layer}.')}{part}": tensor
        for layer in range(1, layers)
        for part, tensor in first.items()
    }
    return tensors | copies


def _image_width(encoder: Arrays) -> int:
    return encoder[f"{_ENCODER}model.post_layernorm.weight"].size


def modules(config: folder_lib.ExportedConfig, tensors: Arrays, *, image_width: int) -> nn.Module:
    """Returns the language model; of the tensors only norms and numbers of rows are looked at."""
    width = tensors["out_norm.weight"].size
    root, transformer, prefix = nn.Module(), nn.Module(), nn.Module()
    root.text_emb = nn.Embedding(config.text_vocab + 1, width)
    root.audio_embs = [nn.Embedding(config.audio_vocab + 1, width) for _ in config.delays[1:]]
    root.out_norm = nn.RMSNorm(width)
    root.text_linear = nn.Linear(width, config.text_vocab, bias=False)
    mha = nn.Module()
    mha.q_proj = nn.Linear(width, width, bias=False)
    mha.kv_proj = nn.Linear(width, 2 * width, bias=False)
    mha.out_proj = nn.Linear(width, width, bias=False)
    transformer.layers = []
    for i in range(config.layers):
        name = f"transformer.layers.{i}."
        layer = _block(width, len(tensors[f"{name}gating.linear_in.weight"]) // 2)
        layer.norm_cross, layer.cross_attention = nn.RMSNorm(width), nn.Module()
        layer.cross_attention.mha = mha  # one for all layers
        if config.gate == "conditional":
            hidden = len(tensors[f"{name}cross_attention.gate.alpha.layers.0.weight"])
            layer.cross_attention.gate = _gate(width, hidden)
        transformer.layers.append(layer)
    prefix.proj_xa = nn.Linear(image_width, width)
    prefix.norm_xa = nn.RMSNorm(width)
    transformer.image_prefix, root.transformer = prefix, transformer
    root.depformer = nn.Module()
    root.depformer.slices = [_slice(config, tensors, step) for step in range(config.codebooks_out)]
    return root


def _block(width: int, hidden: int) -> nn.Module:
    """A layer without cross-attention."""
    layer, layer_attention, mlp = nn.Module(), nn.Module(), nn.Module()
    layer_attention.in_proj = nn.Linear(width, 3 * width, bias=False)
    layer_attention.out_proj = nn.Linear(width, width, bias=False)
    mlp.linear_in = nn.Linear(width, 2 * hidden, bias=False)
    mlp.linear_out = nn.Linear(hidden, width, bias=False)
    layer.norm1, layer.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
    layer.self_attn, layer.gating = layer_attention, mlp
    return layer


def _gate(width: int, hidden: int) -> nn.Module:
    gate = nn.Module()
    down, up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
    gate.alpha = nn.Sequential(down, nn.ReLU(), up)
    return gate


def _slice(config: folder_lib.ExportedConfig, tensors: Arrays, step: int) -> nn.Module:
    """One step of the depth transformer."""
    name = f"depformer.slices.{step}."
    width, main = len(tensors[f"{name}linear_in.weight"]), tensors["out_norm.weight"].size
    part, transformer = nn.Module(), nn.Module()
    part.emb = nn.Embedding((config.audio_vocab if step else config.text_vocab) + 1, width)
    part.linear_in = nn.Linear(main, width, bias=False)
    part.linear_out = nn.Linear(width, config.audio_vocab, bias=False)
    transformer.layers = [
        _block(width, len(tensors[f"{name}transformer.layers.{i}.gating.linear_in.weight"]) // 2)
        for i in range(config.depth_layers)
    ]
    part.transformer = transformer
    return part
