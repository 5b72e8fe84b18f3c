"""An exported MLX folder in MLX, on a GPU (Metal or CUDA) as it is stored, on the CPU in float32.

On a GPU quantized weights stay quantized, and the step is compiled. On the CPU they are dequantized once,
exactly, and linear layers are laid out for its matmul.
"""

from __future__ import annotations

import atexit
import dataclasses
import math
import re
from pathlib import Path
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import interface, network
from mvjax.runtimes.mlx import engine, tensors

Dtype = Literal["float32", "bfloat16"]
_EMBEDDING = re.compile(r"(_emb|_embs\.\d+|\.emb|_embedding)\.weight$")
_BLOCK = 64  # inputs that are added up one after the other
_clear_streams = getattr(mx, "clear_streams", lambda: None)  # MLX before 0.31.2 has none
atexit.register(_clear_streams)  # of the main thread


def on_cpu() -> bool:
    """Whether MLX computes on its CPU backend."""
    return mx.default_device() == mx.Device(mx.cpu)


class MlxModel(network.Network):
    """As `interface.Model`.

    Args:
      folder: written by `mvjax.export.folder`, target "mlx".
      dtype: of weights, activations and KV cache, but for what is always float32; None: float32 on the CPU,
        on a GPU that of the file, bfloat16 if it is quantized.
      quantized: keep quantized weights so; None: on a GPU.
      kv_cache: how it is stored, if not in `dtype`.
      compiled: compile the step, which on the CPU starts a C++ compiler; None: on a GPU.

    Raises:
      ValueError: if a file or a key is missing or does not fit the config, naming both.
    """

    xp, nn = mx, nn

    def __init__(
        self,
        folder: Path,
        *,
        dtype: Dtype | None = None,
        quantized: bool | None = None,
        kv_cache: interface.KvCache | None = None,
        compiled: bool | None = None,
    ) -> None:
        config, cpu = folder_lib.read_mlx(folder), on_cpu()
        self._scheme = dataclasses.asdict(config.quantized) if config.quantized else {}
        chosen = "float32" if dtype is None and cpu else dtype
        weights = tensors.load(
            config,
            dtype=None if chosen is None else getattr(mx, chosen),
            dequantized=cpu if quantized is None else not quantized,
        )
        self._dtype = weights["out_norm.weight"].dtype
        self.kv_cache: interface.KvCache | None = kv_cache
        self._compiled = not cpu if compiled is None else compiled
        if cpu:
            _in_blocks(weights)
        mx.eval(weights)  # also for other threads than this one
        super().__init__(config, weights)

    @property
    def dtype(self) -> str:
        """What it computes in, and how its weights are quantized."""
        name = str(self._dtype).removeprefix("mlx.core.")
        kept = any(array.dtype == mx.uint32 for array in self.weights.values())
        return f"{name}, q{self._scheme['bits']} weights" if kept else name

    def end_thread(self) -> None:
        """As `interface.Model.end_thread`: MLX's streams, whose own threads would outlive Python."""
        _clear_streams()

    def engine(self, rows: int, *, probes: bool) -> engine.Engine:
        """As `slots.BatchedModel.engine`."""
        return engine.Engine(
            self,
            rows,
            probes=probes,
            dtype=self._dtype,
            kv_cache=self.kv_cache,
            compiled=self._compiled,
        )

    def encode_image(self, pixels: np.ndarray) -> network.KeysValues:
        """As `interface.Model.encode_image`, computed once and not with the first frame."""
        keys, values = (x.astype(self._dtype) for x in super().encode_image(pixels))
        mx.eval(keys, values)
        return keys, values

    def _linear(self, name: str, x: mx.array) -> mx.array:
        w = self.weights
        weight, scales, bias = w[f"{name}.weight"], w.get(f"{name}.scales"), w.get(f"{name}.bias")
        if weight.ndim == 3:
            y = _matmul(x, weight)
        elif scales is None:
            y = x @ weight.T
        else:
            parts = x.reshape(-1, x.shape[-1]), scales, w[f"{name}.biases"]
            if on_cpu():  # it adds up in the type of what it is given, a GPU in float32
                parts = tuple(part.astype(mx.float32) for part in parts)
            rows, scales, biases = parts
            y = mx.quantized_matmul(rows, weight, scales, biases, transpose=True, **self._scheme)
            y = y.reshape(*x.shape[:-1], -1).astype(x.dtype)
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


def _in_blocks(weights: tensors.Arrays) -> None:
    """Lays the weights of linear layers out as [blocks, in / blocks, out] in place of [out, in].

    MLX's CPU matmul adds the inputs up one after the other, so that its rounding error grows with their
    number (5 times numpy's at 528). In blocks of up to 64 it is as exact as elsewhere, and with the outputs
    last it takes two thirds of the time.
    """
    for name, weight in weights.items():
        quantized = f"{name.removesuffix('weight')}scales" in weights
        if weight.ndim != 2 or not name.endswith(".weight") or quantized or _EMBEDDING.search(name):
            continue
        out, width = weight.shape
        weights[name] = mx.contiguous(weight.T).reshape(-1, math.gcd(width, _BLOCK), out)
        mx.eval(weights[name])  # one at a time: the whole model is not in memory twice


def _matmul(x: mx.array, blocks: mx.array) -> mx.array:
    """Returns x [.., in] times a weight of `_in_blocks`, over the inputs."""
    count, block, out = blocks.shape
    parts = x.reshape(-1, count, block).swapaxes(0, 1)
    y = mx.sum(parts.astype(mx.float32) @ blocks.astype(mx.float32), axis=0)
    return y.reshape(*x.shape[:-1], out).astype(x.dtype)
