"""The depth transformer in MLX: the audio codes of a frame, one codebook after the other."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from mvjax import types
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes.mlx import layers, tensors

Past = list[tuple[mx.array, mx.array]]  # keys and values [n, steps, h] of each layer


class MlxDepformer:
    """A `host.HostDepformer`, with own weights for each codebook; arguments as `backbone.MlxBackbone`."""

    def __init__(self, config: folder_lib.ExportedConfig, weights: tensors.MlxWeights) -> None:
        self._config, self._w = config, weights

    def generate(
        self, z: mx.array, text: int, forced: np.ndarray, sample: Callable[[np.ndarray], int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `host.HostDepformer.generate`."""
        w, past = self._w, []
        code, codes, logits = text, [], []
        for q, wanted in enumerate(forced.tolist()):
            p = f"depformer.slices.{q}."
            x = layers.linear(w, f"{p}linear_in", z) + layers.row(w, f"{p}emb", code)
            for i in range(self._config.depth_layers):
                x = self._layer(f"{p}transformer.layers.{i}.", i, x, past)
            logits.append(np.array(layers.linear(w, f"{p}linear_out", x)))
            code = sample(logits[-1]) if wanted == types.UNGENERATED else wanted
            codes.append(code)
        return np.asarray(codes), np.stack(logits)

    def _layer(self, p: str, i: int, x: mx.array, past: Past) -> mx.array:
        """Returns the residual stream [d]; adds this step's keys and values to the layer's past."""
        c, w = self._config, self._w
        y = layers.norm(x, w[f"{p}norm1.weight"], *c.depth_norm)
        q, k, v = layers.linear(w, f"{p}self_attn.in_proj", y).reshape(3, c.depth_heads, -1)
        k, v = k[:, None], v[:, None]
        if i == len(past):
            past.append((k, v))
        else:
            past_k, past_v = past[i]
            past[i] = (mx.concatenate([past_k, k], 1), mx.concatenate([past_v, v], 1))
        x = x + layers.linear(w, f"{p}self_attn.out_proj", layers.attend(q, *past[i]))
        y = layers.norm(x, w[f"{p}norm2.weight"], *c.depth_norm)
        return x + layers.mlp(w, f"{p}gating.", y)
