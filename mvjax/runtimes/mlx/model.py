"""An exported MLX folder in MLX, in float32.

Independent of the JAX model, so that agreement with it means something. Source of the equations:
reference sections 2 and 3. Layout: reference section 4.5. Quantized weights stay quantized on a GPU;
on the CPU, where MLX is for correctness, they are dequantized once, exactly.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import host
from mvjax.runtimes.mlx import backbone, depformer, layers, tensors, vision


class MlxModel(host.HostModel):
    """As `interface.Model`.

    Args:
      folder: written by `mvjax.export.folder`, target "mlx".

    Raises:
      ValueError: if a file or a key is missing or does not fit the config, naming both.
    """

    def __init__(self, folder: Path) -> None:
        self.config = folder_lib.read_mlx(folder)
        self.weights = tensors.load(self.config, dequantized=layers.on_cpu())
        super().__init__(
            self.config.sizes,
            backbone.MlxBackbone(self.config, self.weights),
            depformer.MlxDepformer(self.config, self.weights),
        )

    def encode_image(self, pixels: np.ndarray) -> backbone.KeysValues:
        """As `interface.Model.encode_image`."""
        self.sizes.check_pixels(pixels)
        return vision.keys_values(self.weights, self.config, mx.array(pixels))
