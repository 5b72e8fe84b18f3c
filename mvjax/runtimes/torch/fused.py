"""What a frame does between its large products, in Triton: one launch where eager PyTorch takes several.

In eager PyTorch a frame of the 7B is two thousand launches, of two to three microseconds each even in a CUDA
graph. Values are computed in float32 and rounded once, as `network.Network` does.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


def jit(function: Any) -> Any:
    """As `triton.jit`: what it returns is launched over a grid, `kernel[grid](...)`."""
    return triton.jit(function)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Returns x * (weight * rsqrt(mean(x^2) + eps)), of x [B, D] and a float32 weight [D]."""
    rows, width = x.shape
    y = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    warps = min(max(block // 512, 1), 16)
    _rms_norm[(rows,)](x, weight, y, x.stride(0), width, eps, block, num_warps=warps)
    return y


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the pairs (2i, 2i+1) of x [B, 2, N, H] by angles [B, H / 2]."""
    rows, parts, heads, width = x.shape
    assert x.stride(3) == 1 and x.stride(2) == width and x.stride(1) == heads * width
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    half, count = width // 2, parts * heads
    _rope[(rows, count)](x, cos, sin, y, x.stride(0), count, half, triton.next_power_of_2(half))
    return y


def gated_silu(x: torch.Tensor) -> torch.Tensor:
    """Returns silu(a) * b, of the halves of x [B, 2 F]."""
    rows, width = x.shape
    half = width // 2
    y = torch.empty((rows, half), dtype=x.dtype, device=x.device)
    _gated_silu[(rows, triton.cdiv(half, 1024))](x, y, x.stride(0), half, 1024)
    return y


def gated_sum(
    x: torch.Tensor,
    u: torch.Tensor,
    logits: torch.Tensor,
    sees: torch.Tensor | None,
    alpha: torch.Tensor | None,
    *,
    shift: float,
    tanh: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (x + alpha * gate * u, mean of the gate [B]); (x, 0) where nothing is seen.

    x and u are [B, D]; the gate is tanh(logits), or sigmoid(logits - shift), of logits that broadcast to it.
    """
    rows, width = x.shape
    y, means = torch.empty_like(x), torch.empty(rows, dtype=torch.float32, device=x.device)
    spread = logits.expand(rows, width)
    _gated_sum[(rows,)](
        x, u, spread, sees if sees is not None else x, alpha if alpha is not None else x, y, means,
        spread.stride(0), spread.stride(1), width, shift, sees is not None, alpha is not None, tanh,
        triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return y, means


@jit
def _rms_norm(x, weight, y, stride, width, eps, block: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, block)
    inside = at < width
    values = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values * values, 0) / width
    scale = tl.load(weight + at, mask=inside, other=0.0) * tl.rsqrt(mean + eps)
    tl.store(y + row * width + at, (values * scale).to(y.dtype.element_ty), mask=inside)


@jit
def _rope(x, cos, sin, y, stride, count, half, block: tl.constexpr):
    row, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, block)
    inside = at < half
    c = tl.load(cos + row * half + at, mask=inside, other=0.0)
    s = tl.load(sin + row * half + at, mask=inside, other=0.0)
    source = x + row * stride + head * 2 * half + 2 * at
    r = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    i = tl.load(source + 1, mask=inside, other=0.0).to(tl.float32)
    target = y + (row * count + head) * 2 * half + 2 * at
    tl.store(target, (r * c - i * s).to(y.dtype.element_ty), mask=inside)
    tl.store(target + 1, (r * s + i * c).to(y.dtype.element_ty), mask=inside)


@jit
def _gated_silu(x, y, stride, half, block: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < half
    kind = y.dtype.element_ty
    a = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + row * stride + half + at, mask=inside, other=0.0).to(tl.float32)
    silu = (a / (1.0 + tl.exp(-a))).to(kind).to(tl.float32)
    tl.store(y + row * half + at, (silu * b).to(kind), mask=inside)


@jit
def _gated_sum(
    x, u, logits, sees, alpha, y, means, stride, step, width, shift,
    masked: tl.constexpr, scaled: tl.constexpr, tanh: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    at = tl.arange(0, block)
    inside = at < width
    given = tl.load(x + row * width + at, mask=inside, other=0.0)
    added = tl.load(u + row * width + at, mask=inside, other=0.0).to(tl.float32)
    logit = tl.load(logits + row * stride + at * step, mask=inside, other=0.0).to(tl.float32)
    if tanh:  # noqa: SIM108
        gate = 1.0 - 2.0 / (tl.exp(2.0 * logit) + 1.0)
    else:
        gate = 1.0 / (1.0 + tl.exp(shift - logit))
    gate = tl.where(inside, gate, 0.0)
    mean, added = tl.sum(gate, 0) / width, added * gate
    if scaled:
        added *= tl.load(alpha).to(tl.float32)
    kind = y.dtype.element_ty
    total = (given.to(tl.float32) + added.to(kind).to(tl.float32)).to(kind)
    if masked:
        seen = tl.load(sees + row) != 0
        total, mean = tl.where(seen, total, given), tl.where(seen, mean, 0.0)
    tl.store(y + row * width + at, total, mask=inside)
    tl.store(means + row, mean)
