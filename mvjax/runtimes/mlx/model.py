"""An exported MLX folder in MLX, in float32.

Quantized weights stay quantized on a GPU; on the CPU, where MLX is for correctness, they are dequantized
once, exactly.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import network
from mvjax.runtimes.mlx import engine, tensors


def on_cpu() -> bool:
    """Whether MLX computes on its CPU backend."""
    return mx.default_device() == mx.Device(mx.cpu)


class MlxModel(network.Network):
    """As `interface.Model`.

    Args:
      folder: written by `mvjax.export.folder`, target "mlx".

    Raises:
      ValueError: if a file or a key is missing or does not fit the config, naming both.
    """

    xp, nn = mx, nn

    def __init__(self, folder: Path) -> None:
        config = folder_lib.read_mlx(folder)
        self._scheme = dataclasses.asdict(config.quantized) if config.quantized else {}
        super().__init__(config, tensors.load(config, dequantized=on_cpu()))

    def engine(self, rows: int, *, probes: bool) -> engine.Engine:
        """As `slots.BatchedModel.engine`."""
        return engine.Engine(self, rows, probes=probes)

    def encode_image(self, pixels: np.ndarray) -> network.KeysValues:
        """As `interface.Model.encode_image`, computed once and not with the first frame."""
        kv = super().encode_image(pixels)
        mx.eval(kv)
        return kv

    def _linear(self, name: str, x: mx.array) -> mx.array:
        w = self.weights
        weight, scales, bias = w[f"{name}.weight"], w.get(f"{name}.scales"), w.get(f"{name}.bias")
        if scales is None:
            y = _matmul(x, weight)
        else:
            biases, rows = w[f"{name}.biases"], x.reshape(-1, x.shape[-1])
            y = mx.quantized_matmul(rows, weight, scales, biases, transpose=True, **self._scheme)
            y = y.reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    def _rows(self, name: str, ids: mx.array) -> mx.array:
        parts = (self.weights.get(f"{name}.{part}") for part in ("weight", "scales", "biases"))
        rows = [part[mx.maximum(ids, 0)] for part in parts if part is not None]
        found = rows[0] if len(rows) == 1 else mx.dequantize(*rows, **self._scheme)
        return mx.where(ids[:, None] >= 0, found, 0.0)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)

    def _layer_norm(self, name: str, x: mx.array) -> mx.array:
        weight, bias = (self.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        return mx.fast.layer_norm(x, weight, bias, self.config.encoder.eps)

    def _gelu(self, x: mx.array) -> mx.array:
        return nn.gelu_approx(x)

    def _patches(self, pixels: np.ndarray, kernel: mx.array, size: int) -> mx.array:
        kernel = kernel.transpose(0, 2, 3, 1)  # OIHW -> OHWI
        return mx.conv2d(mx.array(pixels), kernel, stride=size).reshape(1, -1, kernel.shape[0])

    def _float(self, x: mx.array) -> mx.array:
        return x.astype(mx.float32)

    def _as(self, x: mx.array, like: mx.array) -> mx.array:
        return x.astype(like.dtype)

    def _largest(self, x: mx.array, count: int) -> mx.array:
        return mx.sort(mx.topk(x, count))[:, ::-1]

    def _at(self, x: mx.array, index: mx.array) -> mx.array:
        return mx.take_along_axis(x, index[:, None], 1)

    def _marked(self, ids: mx.array, size: int) -> mx.array:
        return mx.put_along_axis(mx.zeros((len(ids), size), mx.bool_), ids, mx.array(True), 1)


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
