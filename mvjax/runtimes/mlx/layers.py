"""What the transformers of the MLX runtime share; one frame at a time, so without batch and time axes."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes.mlx import tensors


def on_cpu() -> bool:
    """Whether MLX computes on its CPU backend."""
    return mx.default_device() == mx.Device(mx.cpu)


def row(w: tensors.MlxWeights, name: str, i: int) -> mx.array:
    """Returns row i of an embedding."""
    weight, scales = w[f"{name}.weight"][i], w.get(f"{name}.scales")
    if scales is None:
        return weight
    biases = w[f"{name}.biases"]
    dequantized = mx.dequantize(
        weight[None], scales[i][None], biases[i][None], group_size=w.group_size, bits=w.bits
    )
    return dequantized[0]


def linear(w: tensors.MlxWeights, name: str, x: mx.array) -> mx.array:
    """Applies a linear layer, quantized or not, with or without a bias."""
    weight, scales = w[f"{name}.weight"], w.get(f"{name}.scales")
    if scales is None:
        y = _matmul(x, weight)
    else:
        biases, rows = w[f"{name}.biases"], x.reshape(-1, x.shape[-1])
        y = mx.quantized_matmul(
            rows, weight, scales, biases, transpose=True, group_size=w.group_size, bits=w.bits
        ).reshape(*x.shape[:-1], -1)
    bias = w.get(f"{name}.bias")
    return y if bias is None else y + bias


def _matmul(x: mx.array, weight: mx.array) -> mx.array:
    """Returns x [rows, in] times weight [out, in], over the inputs.

    MLX's CPU matmul adds the inputs up one after the other, so that its rounding error grows with
    their number (5 times numpy's at 528). In blocks of up to 32 it is as exact as elsewhere.
    """
    if not on_cpu():
        return x @ weight.T
    out, width = weight.shape
    block = math.gcd(width, 32)
    parts = x.reshape(-1, width // block, block).transpose(1, 0, 2)
    blocks = weight.reshape(out, width // block, block).transpose(1, 2, 0)
    return mx.sum(parts @ blocks, axis=0).reshape(*x.shape[:-1], out)


def norm(x: mx.array, weight: mx.array, kind: folder_lib.NormKind, eps: float) -> mx.array:
    """Returns x * (weight * rsqrt(s + eps)); reference section 2.2."""
    variance = kind == "variance"
    s = x.var(-1, keepdims=True, ddof=1) if variance else x.square().mean(-1, keepdims=True)
    return x * (weight * mx.rsqrt(s + eps))


def rope(x: mx.array, position: int, base: float) -> mx.array:
    """Rotates the pairs (2i, 2i+1) of x [N, H]."""
    H = x.shape[-1]
    angles = position * mx.exp(mx.arange(H // 2) * (-2.0 * math.log(base) / H))
    pairs = x.reshape(-1, H // 2, 2)
    r, i = pairs[..., 0], pairs[..., 1]
    cos, sin = mx.cos(angles), mx.sin(angles)
    return mx.stack([r * cos - i * sin, r * sin + i * cos], axis=-1).reshape(-1, H)


def heads(x: mx.array, n: int) -> mx.array:
    """[S, N x H] -> [N, S, H]."""
    return x.reshape(x.shape[0], n, -1).transpose(1, 0, 2)


def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Attends from one frame, q [N, H], to keys and values [N, S, H]; returns [N x H]."""
    scale = q.shape[-1] ** -0.5
    u = mx.fast.scaled_dot_product_attention(q[None, :, None], k[None], v[None], scale=scale)
    return u.reshape(-1)


def mlp(w: tensors.MlxWeights, name: str, x: mx.array) -> mx.array:
    """Returns out(silu(a) * b), with a and b the halves of one projection."""
    a, b = linear(w, f"{name}linear_in", x).reshape(2, -1)
    return linear(w, f"{name}linear_out", nn.silu(a) * b)
