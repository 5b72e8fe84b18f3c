"""Loads the Triton kernels where they run and are right: on CUDA, with Triton and the C compiler it needs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

_log = logging.getLogger(__name__)
_SLOWER = "frames take longer without these kernels"

Tensors = Callable[..., torch.Tensor]


class Kernels(NamedTuple):
    """The functions of `fused`, `fused_attention.attend` and `fused_int8.linear`."""

    rms_norm: Tensors
    rope: Tensors
    gated_silu: Tensors
    gated_sum: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    attend: Tensors
    int8_linear: Tensors


def kernels() -> Kernels:
    """Returns them all; an ImportError without Triton."""
    from mvjax.runtimes.torch import fused, fused_attention, fused_int8

    return Kernels(
        fused.rms_norm,
        fused.rope,
        fused.gated_silu,
        fused.gated_sum,
        fused_attention.attend,
        fused_int8.linear,
    )


@functools.cache
def loaded(device: torch.device) -> Kernels | None:
    """Returns the kernels; None, with a warning if the device is a GPU, where they do not run or disagree."""
    if device.type != "cuda":
        return None
    try:
        found = kernels()
        wrong = disagreeing(found, device)
    except Exception as error:  # without a C compiler, too, Triton raises an error of another kind
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        _log.warning("%s: Triton does not run here: %s; %s", device, first, _SLOWER)
        return None
    if wrong:
        _log.warning("%s: Triton's %s differ from PyTorch; %s", device, ", ".join(wrong), _SLOWER)
        return None
    return found


@torch.inference_mode()
def disagreeing(found: Kernels, device: torch.device) -> list[str]:
    """Returns the names of kernels that differ from PyTorch, on two rows of bfloat16 noise."""
    torch_noise = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch_noise).to(device, torch.bfloat16)

    x, u, weight, logits = noise(2, 4096), noise(2, 4096), noise(4096).float(), noise(2, 4096)
    qkv, angle = noise(2, 3, 32, 128), noise(2, 1, 1, 64).float()
    k, v, position = noise(2, 32, 1024, 128), noise(2, 32, 1024, 128), torch.tensor([700, 5000])
    position, q, sees = position.to(device), qkv[:, 0], torch.tensor([True, False]).to(device)
    codes, scales = (noise(4096, 4096) * 40).clamp(-127, 127).to(torch.int8), noise(4096).abs()
    r, i = qkv[:, :2].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack(
        [r * angle.cos() - i * angle.sin(), r * angle.sin() + i * angle.cos()], -1
    ).flatten(-2)
    mask = torch.arange(1024, device=device) <= position.clamp(max=1023)[:, None]
    gate = torch.sigmoid(logits.float() - 4.0)
    gated = torch.where(sees[:, None], x + u.float() * gate, x)
    product = F.linear(x.float(), codes.float() * scales.float()[:, None])
    linear, size = found.int8_linear, {"position": position, "context": 1024}
    pairs = {
        "rms_norm": (found.rms_norm(x, weight, 1e-8), F.rms_norm(x.float(), (4096,), weight, 1e-8)),
        "rope": (found.rope(qkv[:, :2], angle.cos(), angle.sin()), turned),
        "gated_silu": (found.gated_silu(x), F.silu(x[:, :2048].float()) * x[:, 2048:]),
        "gated_sum": (found.gated_sum(x, u, logits, sees, None, shift=4.0, tanh=False)[0], gated),
        "attend": (found.attend(q, k, v, **size), _attended(q, k, v, mask)),
        "attend to all": (found.attend(q, k, v), _attended(q, k, v, None)),
        "int8_linear": (linear(x, codes, scales, None), product),
        "int8_linear of one row": (linear(x[:1], codes, scales, None), product[:1]),
    }
    bound = 2e-2
    return [
        name
        for name, (a, b) in pairs.items()
        if not (a.float() - b.float()).abs().max() <= bound * b.float().abs().max()
    ]


def _attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    only = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=only)[:, :, 0]
