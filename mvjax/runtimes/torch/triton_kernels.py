"""Loads the Triton kernels where they run: on CUDA, with Triton and the C compiler that it needs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

_log = logging.getLogger(__name__)

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
    """Returns the kernels; None, with a warning if the device is a GPU, where they do not run."""
    if device.type != "cuda":
        return None
    try:
        found = kernels()
        found.gated_silu(torch.zeros((1, 2), device=device))
    except Exception as error:  # without a C compiler, too, Triton raises an error of another kind
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        _log.warning(
            "Triton does not run on %s, and frames take longer without its kernels: %s",
            device,
            first,
        )
        return None
    return found
