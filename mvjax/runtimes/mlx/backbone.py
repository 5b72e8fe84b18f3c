"""One frame through the backbone in MLX: KV cache, gated cross-attention to the image."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mvjax import types
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import host
from mvjax.runtimes.mlx import layers, tensors

GATE_SHIFT = 4.0  # of sigmoid gates; reference section 2.6

KeysValues = tuple[mx.array, mx.array]


class MlxKVCache:
    """Keys and values [N, context, H] of each layer; a ring, in which frame s lies in slot s % context."""

    def __init__(self, config: folder_lib.ExportedConfig, *, width: int) -> None:
        shape = (config.heads, config.context, width // config.heads)
        self._context = config.context
        self._layers = [(mx.zeros(shape), mx.zeros(shape)) for _ in range(config.layers)]

    def append(self, layer: int, s: int, k: mx.array, v: mx.array) -> KeysValues:
        """Writes frame s over the oldest one; returns the frames in the context [N, seen, H]."""
        slot, seen = s % self._context, min(s + 1, self._context)
        keys, values = self._layers[layer]
        keys[:, slot], values[:, slot] = k, v
        return keys[:, :seen], values[:, :seen]


class MlxBackbone:
    """The temporal transformer, a `host.HostBackbone`.

    Args:
      config: of the folder.
      weights: named as in kyuteye_mlx's file.
    """

    def __init__(self, config: folder_lib.ExportedConfig, weights: tensors.MlxWeights) -> None:
        self._config, self._w = config, weights
        self._width = weights["out_norm.weight"].size

    def empty_cache(self) -> MlxKVCache:
        """Returns the KV cache before the first frame."""
        return MlxKVCache(self._config, width=self._width)

    def frame(
        self,
        column: np.ndarray,
        *,
        s: int,
        cache: MlxKVCache,
        image: KeysValues | None,
        probes: bool,
    ) -> host.BackboneFrame:
        """As `host.HostBackbone.frame`."""
        x, hidden, gates = self._embed(column), [], []
        for i in range(self._config.layers):
            x, gate = self._layer(i, x, s=s, cache=cache, image=image)
            if probes or i >= self._config.layers - types.REPORTED_LAYERS:
                gates.append(mx.array(0.0) if gate is None else gate.mean())
            if probes:
                hidden.append(x)
        z, logits = self._output(x)
        return host.BackboneFrame(
            z=z,
            text_logits=np.array(logits),
            gates=np.array(mx.stack(gates)),
            hidden=np.array(mx.stack(hidden)) if probes else None,
        )

    def _embed(self, column: np.ndarray) -> mx.array:
        """Returns the sum of the embeddings of ids [K]; -1 adds none."""
        names = ["text_emb", *(f"audio_embs.{k}" for k in range(len(column) - 1))]
        x = mx.zeros(self._width)
        for name, i in zip(names, column.tolist()):
            if i >= 0:
                x = x + layers.row(self._w, name, i)
        return x

    def _layer(
        self, i: int, x: mx.array, *, s: int, cache: MlxKVCache, image: KeysValues | None
    ) -> tuple[mx.array, mx.array | None]:
        """Returns (residual stream [D], gate over channels; None where no image is seen)."""
        c, w, p = self._config, self._w, f"transformer.layers.{i}."
        y = layers.norm(x, w[f"{p}norm1.weight"], "mean_square", 1e-8)
        q, k, v = layers.linear(w, f"{p}self_attn.in_proj", y).reshape(3, c.heads, -1)
        q, k = (layers.rope(part, s, c.rope_base) for part in (q, k))
        u = layers.attend(q, *cache.append(i, s, k, v))
        x = x + layers.linear(w, f"{p}self_attn.out_proj", u)
        gate = None
        if image is not None and s in c.scope:
            y = layers.norm(x, w[f"{p}norm_cross.weight"], "mean_square", 1e-8)
            y, gate = self._cross_attend(p, y, image)
            x = x + y
        y = layers.norm(x, w[f"{p}norm2.weight"], "mean_square", 1e-8)
        return x + layers.mlp(w, f"{p}gating.", y), gate

    def _output(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Returns (z [D], text logits [V]) of the last layer's residual stream."""
        z = layers.norm(x, self._w["out_norm.weight"], "mean_square", 1e-8)
        return z, layers.linear(self._w, "text_linear", z)

    def _cross_attend(self, p: str, y: mx.array, image: KeysValues) -> tuple[mx.array, mx.array]:
        """Returns (gated cross-attention, gate)."""
        w = self._w
        q = layers.linear(w, f"{tensors.SHARED}q_proj", y).reshape(self._config.heads, -1)
        u = layers.linear(w, f"{tensors.SHARED}out_proj", layers.attend(q, *image))
        if self._config.gate == "none":
            return u, mx.array(1.0)
        hidden = nn.relu(layers.linear(w, f"{p}cross_attention.gate.alpha.layers.0", u))
        logits = layers.linear(w, f"{p}cross_attention.gate.alpha.layers.2", hidden)
        g = mx.sigmoid(logits - GATE_SHIFT)
        return u * g, g
