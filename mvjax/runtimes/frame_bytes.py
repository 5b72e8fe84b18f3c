"""What a frame has to read from memory: its weights once, the KV cache so far and the image, in bytes.

No step can be faster than that takes. Counted from the header of an exported weight file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mvjax.runtimes import folder as folder_lib
from mvjax.weights import safetensors_io

_ONCE = re.compile(r"(^|\.)(img_embedder|image_prefix)\.|kv_proj")  # an image's
_ROWS = re.compile(r"(^|[._])embs?(\.\d+)?\.weight$")  # embeddings: a row of each is read
_CROSS = re.compile(r"cross_attention\.")
_SCALES = re.compile(r"\.(scales|biases)$")
_FUSED = re.compile(r"cross_attention\.mha\.in_proj_weight$")  # query, key and value


class FrameValues(NamedTuple):
    """Numbers of values that a frame reads.

    Attributes:
      weights: matrices of backbone and depth transformer, once.
      cross: besides, where an image is seen.
      past: keys and values of one frame of the cache, all layers.
      image: keys and values of the image, once for each layer that sees it.
      vectors: keys and values of one frame of the cache, a vector of each head counted as one.
    """

    weights: int
    cross: int
    past: int
    image: int
    vectors: int

    def bytes(
        self,
        *,
        weight: float,
        activation: float,
        slots: int,
        past: int,
        image: bool,
        cached: float | None = None,
    ) -> float:
        """Returns the bytes of one frame of a batch.

        Args:
          weight: bytes of a value of a weight.
          activation: likewise of keys and values.
          slots: conversations.
          past: frames in the cache of each.
          image: whether each sees one.
          cached: bytes of a code in the cache, which has a float32 scale of each vector; None: no codes.
        """
        weights = self.weights + (self.cross if image else 0)
        frame = self.past * activation
        if cached is not None:
            frame = self.past * cached + self.vectors * 4
        seen = self.image * activation if image else 0
        return weights * weight + slots * (past * frame + seen)


def read(folder: Path) -> FrameValues | None:
    """Returns the numbers of an export folder; None for a GGUF."""
    config = folder_lib.read(folder)
    if config.weights.suffix != ".safetensors":
        return None
    tensors = safetensors_io.tensors(config.weights)
    encoder = config.encoder
    return count(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        layers=config.layers,
        heads=config.heads,
        image_layers=len(config.image_layers),
        tokens=(encoder.image_size // encoder.patch) ** 2,
        per_word=32 // config.quantized.bits if config.quantized else 1,
    )


def count(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    layers: int,
    heads: int,
    image_layers: int,
    tokens: int,
    per_word: int = 1,
) -> FrameValues:
    """Returns the numbers of tensors {name in the layout of kyuteye_pt or kyuteye_mlx: shape}.

    Args:
      shapes: of the file.
      layers: L.
      heads: N.
      image_layers: how many of them have cross-attention.
      tokens: S.
      per_word: quantized values in a word of 32 bits.
    """
    weights = cross = 0
    for name, shape in shapes.items():
        if len(shape) != 2 or _ONCE.search(name) or _ROWS.search(name) or _SCALES.search(name):
            continue
        packed = f"{name.removesuffix('weight')}scales" in shapes
        size = math.prod(shape) * (per_word if packed else 1)
        if _CROSS.search(name):
            cross += size // 3 if _FUSED.search(name) else size
        else:
            weights += size
    width = math.prod(next(shape for name, shape in shapes.items() if "out_norm." in name))
    past = 2 * width * layers
    image = 2 * width * tokens * image_layers
    return FrameValues(weights, cross, past, image, vectors=2 * heads * layers)
