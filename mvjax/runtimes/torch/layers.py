"""What the transformers of the PyTorch runtime share; one frame at a time, so without batch and time axes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from mvjax.runtimes import folder as folder_lib

Tensors = dict[str, torch.Tensor]


def norm(
    x: torch.Tensor, alpha: torch.Tensor, kind: folder_lib.NormKind, eps: float
) -> torch.Tensor:
    """Returns x * (alpha * rsqrt(s + eps)); reference section 2.2."""
    variance = kind == "variance"
    s = x.var(dim=-1, keepdim=True) if variance else x.square().mean(dim=-1, keepdim=True)
    return x * (alpha.reshape(-1) * torch.rsqrt(s + eps))


def rope(x: torch.Tensor, position: int, base: float) -> torch.Tensor:
    """Rotates the pairs (2i, 2i+1) of x [N, H]."""
    H = x.shape[-1]
    angles = position * torch.exp(torch.arange(H // 2) * (-2.0 * math.log(base) / H))
    r, i = x.view(-1, H // 2, 2).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([r * cos - i * sin, r * sin + i * cos], dim=-1).view(-1, H)


def heads(x: torch.Tensor, n: int) -> torch.Tensor:
    """[S, N x H] -> [N, S, H]."""
    return x.view(len(x), n, -1).transpose(0, 1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attends from one frame, q [N, H], to keys and values [N, S, H]; returns [N x H]."""
    return F.scaled_dot_product_attention(q[None, :, None], k[None], v[None]).flatten()


def mlp(x: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor) -> torch.Tensor:
    """Returns out(silu(a) * b), with a and b the halves of one projection."""
    a, b = F.linear(x, w_in).view(2, -1)
    return F.linear(F.silu(a) * b, w_out)
