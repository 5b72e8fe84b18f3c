"""Linear layers whose weights are not a plain matrix: int8, int4, and packed for several rows on a CPU.

The kernels are PyTorch's own, but for int8 on a GPU (`fused_int8`). torchao 0.18 has none that serve here: in
eager PyTorch on a CPU its int8 layer takes 2.4 times as long as the dense one, where `_weight_int8pack_mm`
takes 0.44 times as long, and its int4 layer needs another package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from mvjax.runtimes.torch import triton_kernels

Quantization = Literal["int8", "int4"]
Linear = Callable[[torch.Tensor], torch.Tensor]

_ATEN = torch.ops.aten
Q8_0_BLOCK = 32  # values that share a scale
INT4_GROUP = 32  # inputs that share a scale and a zero
_INT4_TILES = 8  # of CUDA's kernel, of 16 inputs each


def quantized(
    weight: torch.Tensor, bias: torch.Tensor | None, how: Quantization, device: torch.device
) -> Linear | None:
    """Returns the layer on a device; None if the kernel does not take a weight [out, in] of this shape."""
    out, width = weight.shape
    if (
        how == "int8"
    ):  # with AVX-512 PyTorch's CPU kernel reads 16 inputs at a time, and past the end
        step = 16 if device.type == "cpu" else 4
        return Int8(weight, bias, device) if width % step == 0 else None
    step = INT4_GROUP if device.type == "cpu" else 16 * _INT4_TILES
    return None if width % step or out % 16 else Int4(weight, bias, device)


class Int8:
    """Weight-only int8 with one scale for each output; activations are bfloat16 within."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device
    ) -> None:
        weight = weight.to(device).float()
        scales = (weight.abs().amax(1).clamp(min=1e-30) / 127).bfloat16()
        codes = (weight / scales.float()[:, None]).round().clamp(-127, 127)
        self._codes, self._scales = codes.to(torch.int8), scales
        self._bias = None if bias is None else bias.to(device, torch.float32)
        self._kernels = triton_kernels.loaded(device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Applies it to [B, in]."""
        if self._kernels:
            return self._kernels.int8_linear(x, self._codes, self._scales, self._bias)
        y = _ATEN._weight_int8pack_mm(x.bfloat16().contiguous(), self._codes, self._scales).to(
            x.dtype
        )
        return y if self._bias is None else (y + self._bias).to(x.dtype)


class Int4:
    """Weight-only int4 with scale and zero for each INT4_GROUP inputs; activations are bfloat16 within."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device
    ) -> None:
        groups = weight.float().unflatten(1, (-1, INT4_GROUP))
        least, most = groups.aminmax(dim=2)
        scales = ((most - least).clamp(min=1e-30) / 15).bfloat16()
        zeros = (least + 8 * scales.float()).bfloat16()  # the weight of code 8
        codes = (groups - zeros.float()[..., None]) / scales.float()[..., None]
        codes = (codes.round() + 8).clamp(0, 15).to(torch.int32).flatten(1)
        self._scales = torch.stack([scales, zeros], -1).swapaxes(0, 1).contiguous().to(device)
        if device.type == "cpu":
            self._codes = _ATEN._convert_weight_to_int4pack_for_cpu(codes, 1)
            self._matmul = _ATEN._weight_int4pack_mm_for_cpu
        else:
            pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(device, torch.uint8)
            self._codes = _ATEN._convert_weight_to_int4pack(pairs, _INT4_TILES)
            self._matmul = _ATEN._weight_int4pack_mm
        self._bias = None if bias is None else bias.to(device, torch.float32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Applies it to [B, in]."""
        y = self._matmul(x.bfloat16().contiguous(), self._codes, INT4_GROUP, self._scales).to(
            x.dtype
        )
        return y if self._bias is None else (y + self._bias).to(x.dtype)


def rounded_to_q8_0(x: torch.Tensor) -> torch.Tensor:
    """Returns activations [..., in] as llama.cpp's CPU kernel, and candle's, takes them for q8_0 weights.

    Blocks of 32 become integers times d, the largest magnitude of a block over 127; halves go away from
    zero, and the product takes d in float16.
    """
    blocks = x.float().unflatten(-1, (-1, Q8_0_BLOCK))
    d = blocks.abs().amax(-1, keepdim=True) / 127
    scaled = torch.where(d > 0, blocks / d, 0.0)
    codes = torch.trunc(scaled + torch.copysign(torch.full_like(scaled, 0.5), scaled))
    return (codes * d.half().float()).flatten(-2).to(x.dtype)


class Packed:
    """A matrix in oneDNN's blocked layout.

    MKL's product with a plain one reads it at half the speed from 3 rows on (4 rows of width 1024 take 2.1
    times as long as one, packed 1.3), and in bfloat16 takes as long as in float32, packed 0.7 of it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Applies it to [B, in]."""
        linear = torch.ops.mkldnn._linear_pointwise
        return linear(x, self._weight, self._bias, "none", [], "")


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch has `Packed`, and this processor has it in a dtype."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # oneDNN packs bfloat16 with AVX-512 or AVX-NE-CONVERT alone, and raises an error elsewhere
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
