"""The KV caches and images of B rows in MLX, and the step: traced once for each length of cache it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mvjax.runtimes import interface, network, sampling, slots

BUCKET = 256  # frames: a step reads the KV cache in so many at a time, not all of an empty one

# keys and values of each layer in turn, [B, N, context, H]; or codes and scales of each
_Past = list[mx.array]
_Step = Callable[[list[mx.array], list[mx.array], _Past], tuple[list[mx.array], _Past]]


class Engine:
    """As `slots.Engine`.

    Args:
      model: whose `frame` is computed.
      rows: B.
      probes: return them.
      dtype: of the KV cache, unless `kv_cache` says how it is stored.
      compiled: by `mx.compile`, which fuses what is elementwise into kernels of its own.
    """

    def __init__(
        self,
        model: network.Network,
        rows: int,
        *,
        probes: bool,
        dtype: mx.Dtype,
        kv_cache: interface.KvCache | None,
        compiled: bool,
    ) -> None:
        c = model.config
        self._model, self._rows, self._probes, self._compiled = model, rows, probes, compiled
        self._context = c.context
        shape = rows, c.heads, c.context, model.weights["out_norm.weight"].size // c.heads
        specs: list[tuple[Any, mx.Dtype]] = [(shape, dtype)]
        if kv_cache is not None:
            specs = [(shape, getattr(mx, kv_cache)), (shape[:-1], mx.float32)]
        self._past = [mx.zeros(*spec) for spec in 2 * c.layers * specs]
        mx.eval(self._past)  # here: a thread cannot evaluate what another one has only described
        self._image: list[mx.array] | None = None
        self._steps: dict[tuple[int, bool], _Step] = {}

    def show(self, row: int, image: network.KeysValues) -> None:
        """As `slots.Engine.show`."""
        if self._image is None:
            self._image = [mx.zeros((self._rows, *x.shape[1:]), x.dtype) for x in image]
        for kept, given in zip(self._image, image):
            kept[row] = given[0]
        mx.eval(self._image)

    def clear(self, row: int) -> None:
        """As `slots.Engine.clear`."""
        for past in self._past:
            past[row] = 0
        mx.eval(self._past)

    def step(self, inputs: slots.Inputs) -> slots.Outputs:
        """As `slots.Engine.step`: one evaluation, after which the frame is on the host."""
        image = self._image if self._rows > 1 or inputs.sees.any() else None
        seen = min(self._context, BUCKET * (int(inputs.position.max()) // BUCKET + 1))
        step = self._step(seen, with_image=image is not None)
        arrays = [mx.array(x) for x in (*inputs[:-1], *inputs.sampling)]
        past, self._past = self._past, []
        found, self._past = step(arrays, image or [], past)
        del past  # nothing else holds the cache now, so that it is written in place
        mx.eval(found, self._past)
        text, audio, gate, *probes = (np.array(x) for x in found)
        fields = dict(zip(_PROBES, probes, strict=True)) if self._probes else None
        return slots.Outputs(text, audio, gate, fields)

    def _step(self, seen: int, *, with_image: bool) -> _Step:
        """Returns the step that reads `seen` slots of the cache."""
        if (seen, with_image) not in self._steps:
            step = self._traced(seen)
            self._steps[seen, with_image] = mx.compile(step) if self._compiled else step
        return self._steps[seen, with_image]

    def _traced(self, seen: int) -> _Step:
        def step(
            arrays: list[mx.array], image: list[mx.array], past: _Past
        ) -> tuple[list[mx.array], _Past]:
            values: list[Any] = arrays
            inputs = slots.Inputs._make([*values[:5], sampling.Draws._make(values[5:])])
            cache = _Cache(past, values[1], seen, each=len(past) // self._model.config.layers)
            shown = network.Seen(image[0], image[1], values[2]) if image else None
            out = self._model.frame(inputs, cache, shown, probes=self._probes)
            probes: Any = [] if out.probes is None else [out.probes[name] for name in _PROBES]
            found: Any = [out.text, out.audio, out.gate, *probes]
            return found, cache.past

        return step


_PROBES: tuple[str, ...] = ("text_logits", "audio_logits", "gates", "hidden")


class _Cache:
    """As `network.Cache`; `past` is the cache with the frame in it, so many arrays of `each` layer."""

    def __init__(self, past: _Past, position: mx.array, seen: int, *, each: int) -> None:
        context = past[0].shape[2]
        self.past, self._seen, self._each = list(past), seen, each
        self._rows, self._slot = mx.arange(position.size), position % context
        self._mask = (mx.arange(seen) <= position[:, None])[:, None, None]

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """As `network.Cache.attend`."""
        coded = self._each == 4
        new = (*_quantized(k), *_quantized(v)) if coded else (k, v)
        read = []
        for past, part in zip(self.past[layer * self._each :], new):
            past[self._rows, :, self._slot] = part
            read.append(past[:, :, : self._seen])
        if coded:
            keys, k_scale, values, v_scale = read
            read = [
                (codes * scale[..., None]).astype(q.dtype)
                for codes, scale in ((keys, k_scale), (values, v_scale))
            ]
        return mx.fast.scaled_dot_product_attention(
            q[:, :, None], *read, scale=q.shape[-1] ** -0.5, mask=self._mask
        )


def _quantized(x: mx.array) -> tuple[mx.array, mx.array]:
    """Returns (int8 codes of [B, N, H], scale [B, N]): x is about their product."""
    x = x.astype(mx.float32)
    scale = mx.abs(x).max(-1) / 127
    return mx.round(x / mx.where(scale == 0, 1, scale)[..., None]).astype(mx.int8), scale
