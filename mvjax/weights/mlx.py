"""The layout of `kyuteye_mlx` (reference section 4.5): float32, bfloat16, or quantized.

Differs from Kyutai's PyTorch layout: norms are vectors, the depth transformer is one slice per step
with the shared norms copied into each, and keys and values are fused without the queries.
`mlx_quantized` has the tensors of quantized files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mvjax import files, gates, tree
from mvjax.config import schema
from mvjax.weights import (
    file_names,
    kyutai,
    lazy,
    leaf_view,
    mlx_quantized,
    quantize,
    rules,
    safetensors_io,
    siglip_names,
)

NAMES = (*files.WEIGHTS, *file_names.QUANTIZED["mlx"].values())

_TOP = (
    ("backbone/text_emb/embedding", "text_emb.weight", "V+1 D"),
    ("backbone/audio_emb/embedding", "audio_embs.{stream}.weight", "stream C+1 D"),
    ("backbone/text_head/kernel", "text_linear.weight", "D V -> V D"),
    ("backbone/out_norm/scale", "out_norm.weight", "D"),
    ("backbone/blocks/norm_xa/scale", "transformer.layers.{look}.norm_cross.weight", "look D"),
)
_LAYER = (
    ("norm1/scale", "norm1.weight", "layer D"),
    ("norm2/scale", "norm2.weight", "layer D"),
    ("attn/qkv/kernel", "self_attn.in_proj.weight", "layer D 3 N H -> (3 N H) D"),
    ("attn/out/kernel", "self_attn.out_proj.weight", "layer N H D -> D (N H)"),
    ("mlp/in/kernel", "gating.linear_in.weight", "layer D 2 F -> (2 F) D"),
    ("mlp/out/kernel", "gating.linear_out.weight", "layer F D -> D F"),
)
_DEPTH = (
    ("in/kernel", "{step}.linear_in.weight", "step D d_ -> d_ D"),
    ("heads/kernel", "{step}.linear_out.weight", "step d_ C -> C d_"),
    ("text_emb/embedding", "0.emb.weight", "V+1 d_"),
    ("audio_emb/embedding", "{later_step+1}.emb.weight", "later_step C+1 d_"),
)
_DEPTH_LAYER = (
    ("attn/qkv/kernel", "self_attn.in_proj.weight", "depth step d_ 3 n_ h_ -> (3 n_ h_) d_"),
    ("attn/out/kernel", "self_attn.out_proj.weight", "depth step n_ h_ d_ -> d_ (n_ h_)"),
    ("mlp/in/kernel", "gating.linear_in.weight", "depth step d_ 2 f_ -> (2 f_) d_"),
    ("mlp/out/kernel", "gating.linear_out.weight", "depth step f_ d_ -> d_ f_"),
)
_IMAGE = (
    ("proj/kernel", "proj_xa.weight", "E D -> D E"),
    ("proj/bias", "proj_xa.bias", "D"),
    ("norm/scale", "norm_xa.weight", "D"),
)


def open_mlx(
    path: str | Path, config: schema.ModelConfig, *, dtype: np.dtype | type | None = np.float32
) -> dict[str, leaf_view.LeafView]:
    """Returns {our path: leaf view} of a file of `kyuteye_mlx`.

    Quantized weights are exact in float32; a dtype of None keeps the file's, in which they are rounded as
    `mlx.core.dequantize` rounds them.

    Raises:
      ValueError: naming the file and every missing, unexpected or misshapen tensor.
    """
    path = files.resolve(path, names=NAMES)
    return from_tensors(safetensors_io.tensors(path), config, dtype=dtype, place=str(path))


def quantized(
    flat: Mapping[str, lazy.LazyTensor],
    config: schema.ModelConfig,
    mode: quantize.Mode,
    *,
    place: str,
) -> dict[str, lazy.LazyTensor]:
    """Returns {name in the file: tensor} for {our path: leaf}, quantized when read; the rest bfloat16.

    Raises:
      ValueError: if a width does not fill the groups of the mode, naming each.
    """
    tree.refuse(width_refusals(config, mode), f"{place}: cannot quantize to {mode}")
    return mlx_quantized.quantized(
        rules.upstream_views(flat, mlx_rules(config), kyutai.sizes(config), place=place),
        quantize.SCHEMES[mode],
        layers=config.backbone.layers,
    )


def from_tensors(
    tensors: Mapping[str, lazy.LazyTensor],
    config: schema.ModelConfig,
    *,
    dtype: np.dtype | type | None = np.float32,
    place: str,
) -> dict[str, leaf_view.LeafView]:
    """Returns {our path: leaf view} for {name in the file: tensor}; arguments as `open_mlx`."""
    table, sizes = mlx_rules(config), kyutai.sizes(config)
    single = mlx_quantized.without_copies(tensors, layers=config.backbone.layers, place=place)
    shapes = rules.tensor_shapes(table, sizes)
    plain = mlx_quantized.dequantized(single, shapes, dtype=dtype, place=place)
    return rules.leaf_views(plain, table, sizes, place=place, dtype=dtype)


def width_refusals(config: schema.ModelConfig, mode: quantize.Mode) -> list[str]:
    """Returns a message that names the widths which do not fill a mode's groups; none if all do."""
    group, gate = quantize.SCHEMES[mode].group, config.cross_attention.gate
    widths = {
        "backbone.width": config.backbone.width,
        "backbone.hidden": config.backbone.hidden,
        "depformer.width": config.depformer.width,
        "depformer.hidden": config.depformer.hidden,
        "siglip.width": config.siglip.width,
    }
    if isinstance(gate, gates.Conditional):
        widths["cross_attention.gate.hidden"] = gate.hidden
    wrong = [f"{path}={width}" for path, width in widths.items() if width % group]
    if not wrong:
        return []
    return [
        f"{', '.join(wrong)}: {mode} needs multiples of {group}, the inputs that share a scale;"
        " export bfloat16 instead, or retrain with such widths"
    ]


def mlx_rules(config: schema.ModelConfig) -> list[rules.Rule]:
    """Returns the table, for designs that kyuteye_mlx runs: one conditional gate a layer, or none."""
    return [
        *rules.table(_TOP),
        *rules.table(_LAYER, ours="backbone/blocks/", upstream="transformer.layers.{layer}."),
        *depformer_rules(config),
        *_adapter_rules(config),
        *siglip_names.siglip_rules(ours="image/encoder/", upstream="img_embedder.model."),
    ]


def depformer_rules(config: schema.ModelConfig) -> list[rules.Rule]:
    """Returns the table of the depth transformer, one slice per step."""
    layer = "depformer.slices.{step}.transformer.layers.{depth}."
    copies = (("step", config.codebooks_out),)
    norms = [(f"{norm}/scale", f"{norm}.weight", "depth d_", copies) for norm in ("norm1", "norm2")]
    return [
        *rules.table(_DEPTH, ours="depformer/", upstream="depformer.slices."),
        *rules.table([*norms, *_DEPTH_LAYER], ours="depformer/blocks/", upstream=layer),
    ]


def _adapter_rules(config: schema.ModelConfig) -> list[rules.Rule]:
    shared = "transformer.layers.0.cross_attention.mha."
    keys_values = ("xa/k/kernel", "xa/v/kernel")
    table = [
        rules.Rule("xa/q/kernel", f"{shared}q_proj.weight", "D N H -> (N H) D"),
        rules.Rule(keys_values, f"{shared}kv_proj.weight", "2 D N H -> (2 N H) D"),
        rules.Rule("xa/out/kernel", f"{shared}out_proj.weight", "N H D -> D (N H)"),
        *rules.table(_IMAGE, ours="image/", upstream="transformer.image_prefix."),
    ]
    gate = config.cross_attention.gate
    if gate is None:
        return table
    assert isinstance(gate, gates.Conditional)
    # as the PyTorch layout, through the `layers` of an mlx.nn.Sequential
    parent = "llm.transformer.layers.{look}.cross_attention.gate.alpha."
    ours = "transformer.layers.{look}.cross_attention.gate.alpha.layers."
    return table + [
        dataclasses.replace(rule, name=rule.name.replace(parent, ours))
        for rule in kyutai.gate_rules(config)
    ]
