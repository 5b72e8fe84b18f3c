"""The layout of `kyuteye_mlx` (reference section 4.5), float32 or bfloat16.

Differs from Kyutai's PyTorch layout: norms are vectors, the depth transformer is one slice per step
with the shared norms copied into each, and keys and values are fused without the queries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mvjax import config as config_lib
from mvjax import tree
from mvjax.nn import gates
from mvjax.weights import kyutai, locate, rules, safetensors_io, siglip_names, targets


def load_mlx(
    path: str | Path, config: config_lib.ModelConfig, *, dtype: np.dtype | type | None = np.float32
) -> kyutai.Params:
    """Reads a file of `kyuteye_mlx` into the whole parameter tree.

    Args:
      path: safetensors, not quantised.
      config: the sizes that the file must have.
      dtype: of the parameters; None keeps the file's.

    Raises:
      ValueError: naming the file and every missing, unexpected or misshapen tensor.
    """
    path = locate.resolve(path)
    tensors = safetensors_io.read(path)
    table, sizes = mlx_rules(config), kyutai.sizes(config)
    return tree.unflatten(rules.from_upstream(tensors, table, sizes, place=str(path), dtype=dtype))


def save_mlx(
    path: Path,
    params: tree.Tree,
    config: config_lib.ModelConfig,
    *,
    dtype: np.dtype | type | None = None,
) -> None:
    """Writes the whole tree as one file of `kyuteye_mlx`; dtype None keeps each leaf's."""
    table, sizes = mlx_rules(config), kyutai.sizes(config)
    tensors = rules.to_upstream(tree.flatten(params), table, sizes, place=f"writing {path}")
    if dtype is not None:
        tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    safetensors_io.write(path, tensors)


def mlx_rules(config: config_lib.ModelConfig) -> list[rules.Rule]:
    """Returns the table.

    Raises:
      ValueError: for a design that the layout has no place for, naming it.
    """
    if problems := targets.refusals(config, "mlx"):
        raise ValueError("no MLX layout for this design:\n  " + "\n  ".join(problems))
    encoder = siglip_names.siglip_rules(ours="image/encoder/", theirs="img_embedder.model.")
    table = _backbone_rows() + _depformer_rows(config.codebooks_out)
    return [rules.Rule(*row) for row in table] + _adapter_rules(config) + encoder


def _backbone_rows() -> list[tuple]:
    block, layer = "backbone/blocks/", "transformer.layers.{layer}."
    attention = f"{layer}self_attn."
    return [
        ("backbone/text_emb/embedding", "text_emb.weight", "V+1 D"),
        ("backbone/audio_emb/embedding", "audio_embs.{stream}.weight", "stream C+1 D"),
        ("backbone/text_head/kernel", "text_linear.weight", "D V -> V D"),
        ("backbone/out_norm/scale", "out_norm.weight", "D"),
        (f"{block}norm1/scale", f"{layer}norm1.weight", "layer D"),
        (f"{block}norm2/scale", f"{layer}norm2.weight", "layer D"),
        (f"{block}norm_xa/scale", f"{layer}norm_cross.weight", "layer D"),
        (f"{block}attn/qkv/kernel", f"{attention}in_proj.weight", "layer D 3 N H -> (3 N H) D"),
        (f"{block}attn/out/kernel", f"{attention}out_proj.weight", "layer N H D -> D (N H)"),
        (f"{block}mlp/in/kernel", f"{layer}gating.linear_in.weight", "layer D 2 F -> (2 F) D"),
        (f"{block}mlp/out/kernel", f"{layer}gating.linear_out.weight", "layer F D -> D F"),
    ]


def _depformer_rows(steps: int) -> list[tuple]:
    block, part = "depformer/blocks/", "depformer.slices.{step}."
    layer, copies = f"{part}transformer.layers.{{depth_layer}}.", (("step", steps),)
    return [
        ("depformer/in/kernel", f"{part}linear_in.weight", "step D d_ -> d_ D"),
        ("depformer/heads/kernel", f"{part}linear_out.weight", "step d_ C -> C d_"),
        ("depformer/text_emb/embedding", "depformer.slices.0.emb.weight", "V+1 d_"),
        (
            "depformer/audio_emb/embedding",
            "depformer.slices.{later_step+1}.emb.weight",
            "later_step C+1 d_",
        ),
        (f"{block}norm1/scale", f"{layer}norm1.weight", "depth_layer d_", copies),
        (f"{block}norm2/scale", f"{layer}norm2.weight", "depth_layer d_", copies),
        (
            f"{block}attn/qkv/kernel",
            f"{layer}self_attn.in_proj.weight",
            "depth_layer step d_ 3 n_ h_ -> (3 n_ h_) d_",
        ),
        (
            f"{block}attn/out/kernel",
            f"{layer}self_attn.out_proj.weight",
            "depth_layer step n_ h_ d_ -> d_ (n_ h_)",
        ),
        (
            f"{block}mlp/in/kernel",
            f"{layer}gating.linear_in.weight",
            "depth_layer step d_ 2 f_ -> (2 f_) d_",
        ),
        (
            f"{block}mlp/out/kernel",
            f"{layer}gating.linear_out.weight",
            "depth_layer step f_ d_ -> d_ f_",
        ),
    ]


def _adapter_rules(config: config_lib.ModelConfig) -> list[rules.Rule]:
    shared = "transformer.layers.0.cross_attention.mha."
    image = "transformer.image_prefix."
    table = [
        rules.Rule("xa/q/kernel", f"{shared}q_proj.weight", "D N H -> (N H) D"),
        rules.Rule(
            ("xa/k/kernel", "xa/v/kernel"), f"{shared}kv_proj.weight", "2 D N H -> (2 N H) D"
        ),
        rules.Rule("xa/out/kernel", f"{shared}out_proj.weight", "N H D -> D (N H)"),
        rules.Rule("image/proj/kernel", f"{image}proj_xa.weight", "E D -> D E"),
        rules.Rule("image/proj/bias", f"{image}proj_xa.bias", "D"),
        rules.Rule("image/norm/scale", f"{image}norm_xa.weight", "D"),
    ]
    gate = config.cross_attention.gate
    if gate is None:
        return table
    assert isinstance(gate, gates.Conditional)
    # as the PyTorch layout, through the `layers` of an mlx.nn.Sequential
    parent = "llm.transformer.layers.{layer}.cross_attention.gate.alpha."
    ours = "transformer.layers.{layer}.cross_attention.gate.alpha.layers."
    renamed = [
        rules.Rule(rule.paths, rule.name.replace(parent, ours), rule.axes)
        for rule in kyutai.gate_rules(config)
    ]
    return table + renamed
