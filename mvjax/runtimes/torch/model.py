"""An exported torch or candle folder in PyTorch, on the CPU in float32.

Independent of the JAX model, so that agreement with it means something. Source of the equations:
reference sections 2 and 3. Layout: reference section 4.3; candle's is translated to it first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import torch as safetensors_torch

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import host
from mvjax.runtimes.torch import backbone, candle_tensors, depformer, vision


class TorchModel(host.HostModel):
    """As `interface.Model`.

    Args:
      folder: written by `mvjax.export.folder`, target "torch" or "candle".

    Raises:
      ValueError: if a file or a key is missing or damaged, naming both.
    """

    def __init__(self, folder: Path) -> None:
        candle = folder_lib.is_candle(folder)
        self.config = (folder_lib.read_candle if candle else folder_lib.read_torch)(folder)
        load = candle_tensors.load if candle else safetensors_torch.load_file
        tensors = load(self.config.weights)
        self.weights = {name: tensor.float() for name, tensor in tensors.items()}
        super().__init__(
            self.config.sizes,
            backbone.TorchBackbone(self.config, self.weights),
            depformer.TorchDepformer(self.config, self.weights),
        )

    @torch.inference_mode()
    def encode_image(self, pixels: np.ndarray) -> backbone.KeysValues:
        """As `interface.Model.encode_image`."""
        self.sizes.check_pixels(pixels)
        return vision.keys_values(self.weights, self.config, torch.from_numpy(np.array(pixels)))
