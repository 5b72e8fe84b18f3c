"""Gate statistics: the mean gate activation per layer, over the frames that see an image."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mvjax import types


class GateSums(NamedTuple):
    """Numerator and denominator of the mean gate activation per layer.

    Attributes:
      total: float32 [L], sums over frames of the gate activation, which is a mean over channels.
      frames: float32, number of frames in the sums.
    """

    total: Float[Array, "L"]
    frames: Float[Array, ""]

    def means(self) -> Float[Array, "L"]:
        """Returns the mean gate activation per layer; 0 if no frame sees an image."""
        return self.total / jnp.maximum(self.frames, 1.0)


def none(layers: int) -> GateSums:
    """Returns the sums over no frames."""
    return GateSums(jnp.zeros(layers), jnp.float32(0))


def of(
    gates: Float[Array, "L B T"],
    codes: Int[Array, "B rows T"],
    has_image: Bool[Array, "B"] | Bool[Array, "B T"],
) -> GateSums:
    """Returns the sums over the frames of a part that see an image.

    Args:
      gates: gate activations, each the mean over its channels.
      codes: a frame whose codes are all -1 is padding and is not counted.
      has_image: by row, or by row and frame.
    """
    sees = has_image if has_image.ndim == 2 else has_image[:, None]
    counted = sees & jnp.any(codes != types.ZERO_TOKEN, axis=1)
    weight = counted.astype(jnp.float32)
    return GateSums(jnp.einsum("LBT,BT->L", gates.astype(jnp.float32), weight), jnp.sum(weight))
