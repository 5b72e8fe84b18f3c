"""The KV caches and images of B rows in MLX, and the step."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mvjax.runtimes import network, slots


class Engine:
    """As `slots.Engine`."""

    def __init__(self, model: network.Network, rows: int, *, probes: bool) -> None:
        c = model.config
        self._model, self._rows, self._probes = model, rows, probes
        shape = rows, c.heads, c.context, model.weights["out_norm.weight"].size // c.heads
        self._past = [(mx.zeros(shape), mx.zeros(shape)) for _ in range(c.layers)]
        self._image: network.KeysValues | None = None

    def show(self, row: int, image: network.KeysValues) -> None:
        """As `slots.Engine.show`."""
        if self._image is None:
            keys, values = (mx.zeros((self._rows, *x.shape[1:]), x.dtype) for x in image)
            self._image = keys, values
        for kept, given in zip(self._image, image):
            kept[row] = given[0]

    def step(self, inputs: slots.Inputs) -> slots.Outputs:
        """As `slots.Engine.step`."""
        given, seen = _arrays(inputs), None
        if self._image is not None and (self._rows > 1 or inputs.sees.any()):
            seen = network.Seen(*self._image, given.sees)
        cache = _Cache(self._past, given.position)
        out = self._model.frame(given, cache, seen, probes=self._probes)
        mx.eval(out.text, out.audio, out.gate, out.probes or {}, self._past)
        fields = None if out.probes is None else {n: np.array(x) for n, x in out.probes.items()}
        return slots.Outputs(np.array(out.text), np.array(out.audio), np.array(out.gate), fields)


class _Cache:
    """As `network.Cache`."""

    def __init__(self, past: list[network.KeysValues], position: mx.array) -> None:
        context = past[0][0].shape[2]
        self._past, self._rows, self._slot = past, mx.arange(position.size), position % context
        self._mask = (mx.arange(context) <= position[:, None])[:, None, None]

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """As `network.Cache.attend`."""
        keys, values = self._past[layer]
        keys[self._rows, :, self._slot], values[self._rows, :, self._slot] = k, v
        return mx.fast.scaled_dot_product_attention(
            q[:, :, None], keys, values, scale=q.shape[-1] ** -0.5, mask=self._mask
        )


def _arrays(inputs: Any) -> Any:
    """{numpy array: MLX array} in nested tuples."""
    if isinstance(inputs, np.ndarray):
        return mx.array(inputs)
    return type(inputs)(*map(_arrays, inputs))
