"""How far the gates stand open: means by layer, over the frames that see an image."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mvjax import types


class Openings(NamedTuple):
    """Numerator and denominator of the means.

    Attributes:
      total: float32 [L], sums of gates, each the mean over its channels.
      frames: float32, how many frames they are of.
    """

    total: Float[Array, "L"]
    frames: Float[Array, ""]

    def means(self) -> Float[Array, "L"]:
        """Returns the mean of each layer's gate, 0 where no frame counted."""
        return self.total / jnp.maximum(self.frames, 1.0)


def none(layers: int) -> Openings:
    """Returns the sums over no frame at all."""
    return Openings(jnp.zeros(layers), jnp.float32(0))


def of(
    gates: Float[Array, "L B T"],
    codes: Int[Array, "B rows T"],
    has_image: Bool[Array, "B"] | Bool[Array, "B T"],
) -> Openings:
    """Returns the sums over frames that are there, in rows (or of the frames) that see an image."""
    seen = has_image if has_image.ndim == 2 else has_image[:, None]
    counted = seen & jnp.any(codes != types.ZERO_TOKEN, axis=1)
    weight = counted.astype(jnp.float32)
    return Openings(jnp.einsum("LBT,BT->L", gates.astype(jnp.float32), weight), jnp.sum(weight))
