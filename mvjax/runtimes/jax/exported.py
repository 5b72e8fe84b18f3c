"""An export in PyTorch's layout, in the JAX runtime: its model's config, and the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mvjax import gates, scopes, tree
from mvjax.config import schema
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import interface
from mvjax.runtimes.jax import model as jax_model
from mvjax.weights import kyutai, safetensors_io

_LAYER, _DEPTH = "llm.transformer.layers.{}.", "depformer.layers.0.gating.0."
_IMAGE = "image_prefix.enc.model."


def open_model(
    folder: Path,
    *,
    dtype: schema.Dtype | None = None,
    kv_cache: interface.KvCache | None = None,
) -> jax_model.JaxModel:
    """Loads a folder; `dtype` of activations and matmuls, None: that of the backbone's matrices.

    Raises:
      ValueError: as `read_config`, or if the file is damaged.
    """
    config = read_config(folder)
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    path = folder_lib.read(folder).weights
    safetensors_io.verify(path)
    leaves = kyutai.open_vis(path, config, dtype=None)
    return jax_model.JaxModel(config, tree.unflatten(leaves), kv_cache=kv_cache)


def read_config(folder: Path) -> schema.ModelConfig:
    """Returns the config that a folder's model has, by its config files and the shapes of its tensors.

    Raises:
      ValueError: if it has another layout, or is none; or naming the tensors that are missing or misshapen.
    """
    layout = folder_lib.layout(folder)
    if layout != "torch":
        raise ValueError(
            f"{folder}: expected an export in PyTorch's layout, which the JAX runtime reads, got one for"
            f" {layout}; export with --target torch"
        )
    stated = folder_lib.read(folder)
    if not stated.weights.is_file():
        raise ValueError(f"{stated.weights}: missing; export again")
    tensors = safetensors_io.tensors(stated.weights)
    try:
        config = _config(stated, {name: tuple(one.shape) for name, one in tensors.items()})
    except KeyError as error:
        raise ValueError(f"{stated.weights}: tensor {error} is missing; export again") from error
    narrow = str(tensors["llm.text_linear.weight"].dtype) == "bfloat16"
    config = dataclasses.replace(config, dtype="bfloat16" if narrow else "float32")
    kyutai.open_vis(stated.weights, config, dtype=None)  # names and shapes
    return config


def _config(
    stated: folder_lib.ExportedConfig, shapes: dict[str, tuple[int, ...]]
) -> schema.ModelConfig:
    _, width = shapes["llm.text_emb.weight"]
    _, depth_width = shapes["depformer_text_emb.weight"]
    _, image_width = shapes[f"{_IMAGE}embeddings.position_embedding.weight"]
    encoder, scope = stated.encoder, stated.scope
    every = stated.image_layers == tuple(range(stated.layers))
    crossing = f"{_LAYER.format(stated.image_layers[0])}cross_attention."
    return schema.ModelConfig(
        backbone=schema.BackboneConfig(
            width=width,
            layers=stated.layers,
            heads=stated.heads,
            hidden=shapes[f"{_LAYER.format(0)}gating.linear_out.weight"][1],
            context=stated.context,
            rope_base=stated.rope_base,
        ),
        depformer=schema.DepformerConfig(
            depth_width, stated.depth_layers, stated.depth_heads,
            shapes[f"{_DEPTH}linear_out.weight"][1], *stated.depth_norm,
        ),
        siglip=schema.SiglipConfig(
            image_width, encoder.layers, encoder.heads,
            shapes[f"{_IMAGE}encoder.layers.0.mlp.fc1.weight"][0], encoder.patch, encoder.image_size,
        ),
        cross_attention=schema.CrossAttentionConfig(
            gate=_gate(stated, crossing, shapes),
            share_gate=f"{crossing}per_layer_alpha" in shapes,
            dim=None if (dim := shapes["image_prefix.norm_xa.alpha"][-1]) == width else dim,
            layers=() if every else stated.image_layers,
            scope=scopes.Scope(scope.start, scope.frames),
            image_norm=stated.image_norm[0],
            image_norm_eps=stated.image_norm[1],
        ),
        text_vocab=stated.text_vocab,
        audio_vocab=stated.audio_vocab,
        codebooks_out=stated.codebooks_out,
        delays=stated.delays,
    )  # fmt: skip


def _gate(
    stated: folder_lib.ExportedConfig, crossing: str, shapes: dict[str, tuple[int, ...]]
) -> gates.Gate | None:
    if stated.gate == "none":
        return None
    if stated.gate == "constant":
        return gates.Constant(stated.activation)
    hidden = shapes[f"{crossing}gate.alpha.0.weight"][0]
    bias = f"{crossing}gate.alpha.2.bias" in shapes
    return gates.Conditional(hidden, stated.activation, bias)
