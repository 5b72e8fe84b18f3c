"""The image side in MLX: SigLIP features, projected to the keys and values of cross-attention."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes.mlx import layers, tensors


def keys_values(
    w: tensors.MlxWeights, config: folder_lib.ExportedConfig, pixels: mx.array
) -> tuple[mx.array, mx.array]:
    """Returns keys and values [N, S, H] of one image [1, height, width, 3] in [-1, 1]."""
    prefix = "transformer.image_prefix."
    x = layers.linear(w, f"{prefix}proj_xa", encode(w, config.encoder, pixels))
    x = layers.norm(x, w[f"{prefix}norm_xa.weight"], *config.image_norm)
    kv = layers.linear(w, f"{tensors.SHARED}kv_proj", x)
    k, v = (layers.heads(part, config.heads) for part in mx.split(kv, 2, axis=-1))
    mx.eval(k, v)
    return k, v


def encode(w: tensors.MlxWeights, encoder: folder_lib.EncoderConfig, pixels: mx.array) -> mx.array:
    """Returns SigLIP features [S, E] of one image [1, height, width, 3]; reference section 3.2."""
    p = "img_embedder.model."

    def norm(name: str, y: mx.array) -> mx.array:
        return mx.fast.layer_norm(y, w[f"{p}{name}.weight"], w[f"{p}{name}.bias"], encoder.eps)

    kernel = w[f"{p}embeddings.patch_embedding.weight"].transpose(0, 2, 3, 1)  # OIHW -> OHWI
    patches = mx.conv2d(pixels, kernel, stride=encoder.patch)
    x = patches.reshape(-1, patches.shape[-1]) + w[f"{p}embeddings.patch_embedding.bias"]
    x = x + w[f"{p}embeddings.position_embedding.weight"]
    for i in range(encoder.layers):
        layer = f"encoder.layers.{i}."
        y = norm(f"{layer}layer_norm1", x)
        attention = f"{p}{layer}self_attn."
        q, k, v = (
            layers.heads(layers.linear(w, f"{attention}{part}_proj", y), encoder.heads)
            for part in "qkv"
        )
        scale = q.shape[-1] ** -0.5
        u = mx.fast.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]
        x = x + layers.linear(w, f"{attention}out_proj", u.transpose(1, 0, 2).reshape(x.shape))
        y = layers.linear(w, f"{p}{layer}mlp.fc1", norm(f"{layer}layer_norm2", x))
        x = x + layers.linear(w, f"{p}{layer}mlp.fc2", nn.gelu_approx(y))
    return norm("post_layernorm", x)
