"""The image side in PyTorch: SigLIP features, projected to the keys and values of cross-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes.torch import layers

SHARED = "llm.transformer.layers.0.cross_attention.mha."


def keys_values(
    w: layers.Tensors, config: folder_lib.ExportedConfig, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns keys and values [N, S, H] of one image [1, height, width, 3] in [-1, 1]."""
    x = encode(w, config.encoder, pixels)
    prefix = "image_prefix."
    if f"{prefix}proj_xa.weight" in w:
        x = F.linear(x, w[f"{prefix}proj_xa.weight"], w[f"{prefix}proj_xa.bias"])
    x = layers.norm(x, w[f"{prefix}norm_xa.alpha"], *config.image_norm)
    w_k, w_v = projections(w)[1].chunk(2)
    k, v = (layers.heads(F.linear(x, part), config.heads) for part in (w_k, w_v))
    return k, v


def projections(w: layers.Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the shared weights of queries, and of keys and values."""
    fused = w.get(f"{SHARED}in_proj_weight")
    if fused is not None:
        return fused[: fused.shape[1]], fused[fused.shape[1] :]
    return w[f"{SHARED}in_proj_weight_q"], w[f"{SHARED}in_proj_weight_kv"]


def encode(
    w: layers.Tensors, encoder: folder_lib.EncoderConfig, pixels: torch.Tensor
) -> torch.Tensor:
    """Returns SigLIP features [S, E] of one image [1, height, width, 3]; reference section 3.2."""
    p = "image_prefix.enc.model."
    patches = F.conv2d(
        pixels.permute(0, 3, 1, 2),
        w[f"{p}embeddings.patch_embedding.weight"],
        w[f"{p}embeddings.patch_embedding.bias"],
        stride=encoder.patch,
    )
    x = patches[0].flatten(1).T + w[f"{p}embeddings.position_embedding.weight"]

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.linear(y, w[f"{p}{name}.weight"], w[f"{p}{name}.bias"])

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(
            y, y.shape[-1:], w[f"{p}{name}.weight"], w[f"{p}{name}.bias"], encoder.eps
        )

    for i in range(encoder.layers):
        layer = f"encoder.layers.{i}."
        y = norm(f"{layer}layer_norm1", x)
        q, k, v = (
            layers.heads(linear(f"{layer}self_attn.{part}_proj", y), encoder.heads)
            for part in "qkv"
        )
        u = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        x = x + linear(f"{layer}self_attn.out_proj", u.transpose(0, 1).flatten(1))
        y = linear(f"{layer}mlp.fc1", norm(f"{layer}layer_norm2", x))
        x = x + linear(f"{layer}mlp.fc2", F.gelu(y, approximate="tanh"))
    return norm("post_layernorm", x)
