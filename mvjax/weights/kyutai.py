"""Kyutai's PyTorch layouts: base Moshi (`moshika-pytorch-bf16`) and MoshiVis (`kyuteye_pt`).

Reference sections 4.3 and 4.4. Fused rows are Q|K|V, then head-major; in the depformer one chunk
per step comes first. Where image tokens have another width, `in_proj_weight_q` and `_kv` stand apart.
Differs: share="kv", which kyuteye_pt does not have, stores queries per layer, and keys and values under the
first layer that looks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mvjax import files, tree
from mvjax.config import schema
from mvjax.weights import (
    depth_steps,
    int8,
    leaf_view,
    lora,
    rules,
    safetensors_io,
    siglip_names,
    split_names,
)

_TOP = (
    ("backbone/text_emb/embedding", "text_emb.weight", "V+1 D"),
    ("backbone/audio_emb/embedding", "emb.{stream}.weight", "stream C+1 D"),
    ("backbone/text_head/kernel", "text_linear.weight", "D V -> V D"),
    ("backbone/out_norm/scale", "out_norm.alpha", "D -> 1 1 D"),
    ("depformer/in/kernel", "depformer_in.{step}.weight", "step D d_ -> d_ D"),
    ("depformer/text_emb/embedding", "depformer_text_emb.weight", "V+1 d_"),
    ("depformer/audio_emb/embedding", "depformer_emb.{later_step}.weight", "later_step C+1 d_"),
    ("depformer/heads/kernel", "linears.{step}.weight", "step d_ C -> C d_"),
)
_LAYER = (
    ("norm1/scale", "norm1.alpha", "layer D -> 1 1 D"),
    ("norm2/scale", "norm2.alpha", "layer D -> 1 1 D"),
    ("attn/qkv/kernel", "self_attn.in_proj_weight", "layer D 3 N H -> (3 N H) D"),
    ("attn/out/kernel", "self_attn.out_proj.weight", "layer N H D -> D (N H)"),
    ("mlp/in/kernel", "gating.linear_in.weight", "layer D 2 F -> (2 F) D"),
    ("mlp/out/kernel", "gating.linear_out.weight", "layer F D -> D F"),
)
_DEPTH_LAYER = (
    ("norm1/scale", "norm1.alpha", "depth d_ -> 1 1 d_"),
    ("norm2/scale", "norm2.alpha", "depth d_ -> 1 1 d_"),
    ("attn/qkv/kernel", "self_attn.in_proj_weight", "depth step d_ 3 n_ h_ -> (step 3 n_ h_) d_"),
    ("attn/out/kernel", "self_attn.out_proj.weight", "depth step n_ h_ d_ -> (step d_) (n_ h_)"),
    ("mlp/in/kernel", "gating.{step}.linear_in.weight", "depth step d_ 2 f_ -> (2 f_) d_"),
    ("mlp/out/kernel", "gating.{step}.linear_out.weight", "depth step f_ d_ -> d_ f_"),
)
_BASE_TO_VIS = (
    (r"(text_emb|text_linear|out_norm|transformer)\.", r"llm.\1."),
    (r"emb\.", "audio_emb."),
    (r"linears\.", "audio_linears."),
)


def open_moshi(
    path: str | Path,
    config: schema.ModelConfig,
    *,
    dtype: np.dtype | type | None = np.float32,
    lora_path: str | Path | None = None,
    lora_scaling: float | None = None,
) -> dict[str, leaf_view.LeafView]:
    """Returns {our path: leaf view} of a base Moshi.

    Args:
      path: location of safetensors with the names of `moshi.models.lm.LMModel`: split or fused
        attention projections, int8 with `weight_scb`, one file or several with an index; of a file with
        depth steps for the user's streams, too, the assistant's are taken.
      config: its sizes.
      dtype: None keeps the file's (bfloat16 for int8 weights; weight x scale is exact in float32 only).
      lora_path: location of a LoRA file of moshi-finetune to merge in.
      lora_scaling: None takes that of the config.json beside it.

    Raises:
      ValueError: naming the file and every missing, unexpected or misshapen tensor.
    """
    path = files.resolve(path, names=files.WEIGHTS)
    tensors = int8.dequantized(safetensors_io.tensors(path), place=str(path))
    tensors = split_names.fused(tensors, place=str(path))
    if lora_path is not None:
        lora_path = files.resolve(lora_path, names=lora.NAMES)
        factor = lora.scaling(lora_path, lora_scaling)
        tensors = lora.merged(tensors, lora_path, factor=factor)
    tensors = depth_steps.assistant(tensors, config, place=str(path))
    table = moshi_rules(config)
    return rules.leaf_views(tensors, table, sizes(config), place=str(path), dtype=dtype)


def load_moshi(
    path: str | Path, config: schema.ModelConfig, *, dtype: np.dtype | type | None = np.float32
) -> dict[str, Any]:
    """Reads a base Moshi whole, as `{"backbone": ..., "depformer": ...}` of numpy arrays.

    Raises:
      ValueError: as `open_moshi`; also naming tensors that are damaged.
    """
    path = files.resolve(path, names=files.WEIGHTS)
    safetensors_io.verify(path)
    views = open_moshi(path, config, dtype=dtype)
    return tree.unflatten(rules.read_leaves(views, place=str(path)))


def save_moshi(
    path: Path,
    params: tree.Tree,
    config: schema.ModelConfig,
    *,
    dtype: np.dtype | type | None = None,
) -> None:
    """Writes the backbone and depformer of `params` (which may hold more) as a base Moshi file."""
    table, axes, place = moshi_rules(config), sizes(config), f"writing {path}"
    shapes = rules.leaf_shapes(table, axes)
    flat = {
        path: leaf
        for path, leaf in tree.flatten(params).items()
        if path in shapes or path.startswith("depformer/")
    }
    safetensors_io.write(path, rules.upstream_views(flat, table, axes, place=place, dtype=dtype))


def open_vis(
    path: str | Path, config: schema.ModelConfig, *, dtype: np.dtype | type | None = np.float32
) -> dict[str, leaf_view.LeafView]:
    """Returns {our path: leaf view} of a MoshiVis file (Moshi, adapters, image encoder), as `open_moshi`."""
    path = files.resolve(path, names=files.WEIGHTS)
    tensors, table = safetensors_io.tensors(path), vis_rules(config)
    return rules.leaf_views(tensors, table, sizes(config), place=str(path), dtype=dtype)


def sizes(config: schema.ModelConfig) -> dict[str, int]:
    """Returns {axis name in these rules: size}; `d_`, `n_` .. are the depformer's."""
    backbone, depformer = config.backbone, config.depformer
    gate = config.cross_attention.gate
    gate_shapes = gate.params(backbone.width, backbone.heads) if gate is not None else {}
    return {
        "layer": backbone.layers,
        "look": len(config.cross_attention_layers),
        "D": backbone.width,
        "X": config.image_width,
        "N": backbone.heads,
        "H": backbone.width // backbone.heads,
        "F": backbone.hidden,
        "V": config.text_vocab,
        "V+1": config.text_vocab + 1,
        "C": config.audio_vocab,
        "C+1": config.audio_vocab + 1,
        "stream": config.codebooks - 1,
        "step": config.codebooks_out,
        "later_step": config.codebooks_out - 1,
        "depth": depformer.layers,
        "d_": depformer.width,
        "n_": depformer.heads,
        "h_": depformer.width // depformer.heads,
        "f_": depformer.hidden,
        **siglip_names.sizes(config.siglip),
        **{_gate_axis(p, k): n for p, s in gate_shapes.items() for k, n in enumerate(s.shape)},
    }


def moshi_rules(config: schema.ModelConfig) -> list[rules.Rule]:
    """Returns the table of base Moshi."""
    del config  # every Moshi has the same names
    return [
        *rules.table(_TOP),
        *rules.table(_LAYER, ours="backbone/blocks/", upstream="transformer.layers.{layer}."),
        *rules.table(_DEPTH_LAYER, ours="depformer/blocks/", upstream="depformer.layers.{depth}."),
    ]


def vis_rules(config: schema.ModelConfig) -> list[rules.Rule]:
    """Returns the table of MoshiVis: renamed Moshi, adapters, projection and image encoder."""
    moshi = [
        dataclasses.replace(rule, name=rules.renamed(rule.name, _BASE_TO_VIS))
        for rule in moshi_rules(config)
    ]
    image = [rules.Rule("image/norm/scale", "image_prefix.norm_xa.alpha", "X -> 1 1 X")]
    if config.projects_image:
        image += [
            rules.Rule("image/proj/kernel", "image_prefix.proj_xa.weight", "E X -> X E"),
            rules.Rule("image/proj/bias", "image_prefix.proj_xa.bias", "X"),
        ]
    encoder = siglip_names.siglip_rules(ours="image/encoder/", upstream="image_prefix.enc.model.")
    return moshi + _attention_rules(config) + gate_rules(config) + image + encoder


def _attention_rules(config: schema.ModelConfig) -> list[rules.Rule]:
    """Cross-attention projections and the norm before them; shared ones sit under the first layer."""
    each = _looking(config)
    table = [
        rules.Rule("backbone/blocks/norm_xa/scale", f"{each}norm_cross.alpha", "look D -> 1 1 D")
    ]
    each += "cross_attention.mha."
    first = f"llm.transformer.layers.{config.cross_attention_layers[0]}.cross_attention.mha."
    own, shared = "backbone/blocks/xa/", "xa/"
    fused = config.image_width == config.backbone.width
    share = config.cross_attention.share
    if share == "qkv":
        table.append(rules.Rule("xa/out/kernel", f"{first}out_proj.weight", "N H D -> D (N H)"))
        return table + _inputs(shared, first, fused=fused)
    out = f"{each}out_proj.weight"
    table.append(rules.Rule(f"{own}out/kernel", out, "look N H D -> D (N H)"))
    if share == "none":
        return table + _inputs(own, each, fused=fused, layer="look ")
    query, _ = _inputs(own, each, fused=False, layer="look ")
    _, keys_values = _inputs(shared, first, fused=False)
    return [*table, query, keys_values]


def _inputs(parent: str, name: str, *, fused: bool, layer: str = "") -> list[rules.Rule]:
    """The projections into attention: queries apart where keys and values have other inputs."""
    q, k, v = (f"{parent}{letter}/kernel" for letter in "qkv")
    if fused:
        return [rules.Rule((q, k, v), f"{name}in_proj_weight", f"3 {layer}D N H -> (3 N H) D")]
    return [
        rules.Rule(q, f"{name}in_proj_weight_q", f"{layer}D N H -> (N H) D"),
        rules.Rule((k, v), f"{name}in_proj_weight_kv", f"2 {layer}X N H -> (2 N H) X"),
    ]


def _looking(config: schema.ModelConfig) -> str:
    """The beginning of names that every layer has which looks at the image."""
    numbers = ",".join(map(str, config.cross_attention.layers))
    return f"llm.transformer.layers.{{look{':' if numbers else ''}{numbers}}}."


def gate_rules(config: schema.ModelConfig) -> list[rules.Rule]:
    """Gates; a shared one is written under every layer: kyuteye_pt's loader asks for all."""
    adapters, c = config.cross_attention, config.backbone
    if adapters.gate is None:
        return []
    parent = f"{_looking(config)}cross_attention."
    names, specs = adapters.gate.upstream(), adapters.gate.params(c.width, c.heads)
    if names.keys() != specs.keys():
        raise ValueError(
            f"cross_attention.gate: expected a gate with names in the Kyutai layout, got"
            f" {adapters.gate!r}; retrain with a gate of `mvjax export --list`"
        )
    copies = (("look", len(config.cross_attention_layers)),) if adapters.share_gate else ()
    gates = "gate/" if adapters.share_gate else "backbone/blocks/gate/"
    table = []
    for path, spec in specs.items():
        axes = [_gate_axis(path, k) for k in range(len(spec.shape))]
        # matrices are transposed; scalars are (1, 1, 1)
        upstream = " ".join(reversed(axes)) or "1 1 1"
        ours = " ".join(axes if adapters.share_gate else ["look", *axes])
        name = f"{parent}gate.{names[path]}"
        table.append(rules.Rule(f"{gates}{path}", name, f"{ours} -> {upstream}", copies))
    if adapters.share_gate and adapters.share == "qkv":
        alpha = f"{parent}per_layer_alpha"
        table.append(rules.Rule("backbone/blocks/gate_alpha", alpha, "look -> 1 1 1"))
    return table


def _gate_axis(path: str, k: int) -> str:
    return f"gate:{path}:{k}"
