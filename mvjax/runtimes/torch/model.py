"""An exported torch or candle folder in PyTorch, on the CPU in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import host
from mvjax.runtimes.torch import tensors


class TorchModel(host.HostModel):
    """As `interface.Model`.

    Args:
      folder: written by `mvjax.export.folder`, target "torch" or "candle".

    Raises:
      ValueError: if a file or a key is missing or damaged, naming both.
    """

    xp, nn, inference = torch, F, torch.inference_mode

    def __init__(self, folder: Path) -> None:
        candle = folder_lib.is_candle(folder)
        config = (folder_lib.read_candle if candle else folder_lib.read_torch)(folder)
        super().__init__(config, tensors.load(config))

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _row(self, name: str, i: int) -> torch.Tensor:
        return self.weights[f"{name}.weight"][i]

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]

    def _layer_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (self.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, weight.shape, weight, bias, self.config.encoder.eps)

    def _gelu(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")

    def _patches(self, pixels: np.ndarray, kernel: torch.Tensor, size: int) -> torch.Tensor:
        image = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
        return F.conv2d(image, kernel, stride=size)[0].flatten(1).T

    def _numpy(self, x: torch.Tensor) -> np.ndarray:
        return x.numpy()
