"""An exported torch or candle folder in PyTorch, on the CPU in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import network
from mvjax.runtimes.torch import engine, tensors


class TorchModel(network.Network):
    """As `interface.Model`.

    Args:
      folder: written by `mvjax.export.folder`, target "torch" or "candle".

    Raises:
      ValueError: if a file or a key is missing or damaged, naming both.
    """

    xp, nn = torch, F

    def __init__(self, folder: Path) -> None:
        candle = folder_lib.is_candle(folder)
        config = (folder_lib.read_candle if candle else folder_lib.read_torch)(folder)
        super().__init__(config, tensors.load(config))

    def engine(self, rows: int, *, probes: bool) -> engine.Engine:
        """As `slots.BatchedModel.engine`."""
        return engine.Engine(self, rows, probes=probes)

    @torch.inference_mode()
    def encode_image(self, pixels: np.ndarray) -> network.KeysValues:
        """As `interface.Model.encode_image`."""
        return super().encode_image(pixels)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        rows = self.weights[f"{name}.weight"][ids.clamp(0)]
        return torch.where(ids[:, None] >= 0, rows, 0.0)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def _layer_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (self.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, weight.shape, weight, bias, self.config.encoder.eps)

    def _gelu(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")

    def _patches(self, pixels: np.ndarray, kernel: torch.Tensor, size: int) -> torch.Tensor:
        image = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
        return F.conv2d(image, kernel, stride=size).flatten(2).swapaxes(1, 2)

    def _float(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()

    def _as(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.to(like.dtype)

    def _largest(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x.topk(count).values

    def _at(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x.gather(1, index.long()[:, None])

    def _marked(self, ids: torch.Tensor, size: int) -> torch.Tensor:
        return torch.zeros(len(ids), size, dtype=torch.bool).scatter(1, ids.long(), True)
