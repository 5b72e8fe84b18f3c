"""An exported MLX folder in MLX, in float32.

Independent of the JAX model, so that agreement with it means something. Source of the equations:
reference sections 2 and 3. Layout: reference section 4.5. Quantized weights stay quantized on a GPU;
on the CPU, where MLX is for correctness, they are dequantized once, exactly.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

from mvjax.runtimes import delays, interface, sampling
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes.mlx import backbone, depformer, layers, session, tensors, vision


class MlxModel:
    """As `interface.Model`.

    Args:
      folder: written by `mvjax.export.folder`, target "mlx".

    Raises:
      ValueError: if a file or a key is missing or does not fit the config, naming both.
    """

    def __init__(self, folder: Path) -> None:
        self.config = folder_lib.read_mlx(folder)
        self.weights = tensors.load(self.config, dequantized=layers.on_cpu())
        self._backbone = backbone.MlxBackbone(self.config, self.weights)
        self._depformer = depformer.MlxDepformer(self.config, self.weights)

    @property
    def sizes(self) -> interface.Sizes:
        """As `interface.Model.sizes`."""
        return self.config.sizes

    def encode_image(self, pixels: np.ndarray) -> backbone.KeysValues:
        """As `interface.Model.encode_image`."""
        self.sizes.check_pixels(pixels)
        return vision.keys_values(self.weights, self.config, mx.array(pixels))

    def session(
        self,
        image: backbone.KeysValues | None = None,
        *,
        text_sampling: interface.Sampling = interface.GREEDY,
        audio_sampling: interface.Sampling = interface.GREEDY,
        seed: int = 0,
        probes: bool = False,
    ) -> session.MlxSession:
        """As `interface.Model.session`."""
        return session.MlxSession(
            self._backbone,
            self._depformer,
            delays.DelayBuffer(self.sizes),
            sampling.HostSampler(text_sampling, audio_sampling, seed=seed),
            image=image,
            probes=probes,
        )
