"""Picks ids from float32 logits: the largest, or a draw from the k largest at a temperature."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The id with the largest logit; the first of equals."""

    def __call__(self, logits: Float[Array, "B V"], key: Key[Array, ""]) -> Int[Array, "B"]:
        """Returns one id per row; the key is not used."""
        del key
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class TopK:
    """A draw from softmax(logits / temperature) over the k largest.

    Kyutai's defaults (reference section 1.7): temperature 0.7 and k 25 for text, 0.8 and 250 for audio.
    """

    temperature: float
    k: int

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.k < 1:
            raise ValueError(
                f"TopK: temperature must be above 0 and k at least 1, got {self}; use Greedy()"
            )

    def __call__(self, logits: Float[Array, "B V"], key: Key[Array, ""]) -> Int[Array, "B"]:
        """Returns one id per row."""
        largest, ids = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))
        chosen = jax.random.categorical(key, largest / self.temperature)
        return jnp.take_along_axis(ids, chosen[:, None], axis=-1)[:, 0].astype(jnp.int32)


Sampler = Greedy | TopK
