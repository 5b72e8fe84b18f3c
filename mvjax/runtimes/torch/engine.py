"""The KV caches and images of B rows in PyTorch, and the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mvjax.runtimes import network, slots


class Engine:
    """As `slots.Engine`."""

    def __init__(self, model: network.Network, rows: int, *, probes: bool) -> None:
        c = model.config
        self._model, self._rows, self._probes = model, rows, probes
        width = model.weights["out_norm.weight"].numel()
        shape = c.layers, rows, c.heads, c.context, width // c.heads
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)
        self._image: network.KeysValues | None = None

    @torch.inference_mode()
    def show(self, row: int, image: network.KeysValues) -> None:
        """As `slots.Engine.show`."""
        if self._image is None:
            self._image = tuple(x.new_zeros((self._rows, *x.shape[1:])) for x in image)
        for kept, given in zip(self._image, image):
            kept[row] = given[0]

    @torch.inference_mode()
    def step(self, inputs: slots.Inputs) -> slots.Outputs:
        """As `slots.Engine.step`."""
        context = self._keys.shape[3]
        given = _tensors(inputs)
        seen = None
        if self._image is not None and (self._rows > 1 or inputs.sees.any()):
            seen = network.Seen(*self._image, given.sees)
        position = given.position.long()[:, None]
        mask = torch.arange(context) <= position
        cache = _Cache(self._keys, self._values, position[:, 0] % context, mask)
        return _arrays(self._model.frame(given, cache, seen, probes=self._probes))


class _Cache:
    """As `network.Cache`."""

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, slot: torch.Tensor, mask: torch.Tensor
    ) -> None:
        self._keys, self._values, self._slot = keys, values, slot
        self._rows, self._mask = torch.arange(len(slot)), mask[:, None, None]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As `network.Cache.attend`."""
        keys, values = self._keys[layer], self._values[layer]
        keys[self._rows, :, self._slot], values[self._rows, :, self._slot] = k, v
        return torch.nn.functional.scaled_dot_product_attention(
            q[:, :, None], keys, values, attn_mask=self._mask
        )


def _tensors(inputs: Any) -> Any:
    """{array: tensor} in nested tuples."""
    if isinstance(inputs, np.ndarray):
        return torch.from_numpy(inputs)
    return type(inputs)(*map(_tensors, inputs))


def _arrays(out: Any) -> slots.Outputs:
    fields = None if out.probes is None else {n: x.numpy() for n, x in out.probes.items()}
    return slots.Outputs(out.text.numpy(), out.audio.numpy(), out.gate.numpy(), fields)
