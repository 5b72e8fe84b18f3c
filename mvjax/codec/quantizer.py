"""Split residual vector quantization: one semantic level, and acoustic levels that do not see it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mvjax.config import frozen
from mvjax.nn import layers

SEMANTIC_LEVELS = 1

_MIN_USAGE = 1e-5  # reference section 6: centroids are embedding_sum / max(cluster_usage, 1e-5)


class Quantizer(nn.Module):
    """Both branches quantize the same latents; decoding adds them."""

    config: frozen.MimiConfig

    def setup(self) -> None:
        """Creates `semantic` and `acoustic`."""
        c = self.config
        acoustic_stored = c.stored_codebooks - SEMANTIC_LEVELS
        self.semantic = Branch(c, stored=SEMANTIC_LEVELS, levels=SEMANTIC_LEVELS)
        self.acoustic = Branch(c, stored=acoustic_stored, levels=c.codebooks - SEMANTIC_LEVELS)

    def encode(self, x: Float[Array, "B T latent"]) -> Int[Array, "B Q T"]:
        """Returns the codes, semantic first."""
        return jnp.concatenate([self.semantic.encode(x), self.acoustic.encode(x)], axis=1)

    def decode(self, codes: Int[Array, "B Q T"]) -> Float[Array, "B T latent"]:
        """Returns the latents that the codes stand for; NaN where a code is out of range."""
        semantic = self.semantic.decode(codes[:, :SEMANTIC_LEVELS])
        return semantic + self.acoustic.decode(codes[:, SEMANTIC_LEVELS:])


class Branch(nn.Module):
    """A residual quantizer between two projections."""

    config: frozen.MimiConfig
    stored: int  # levels of the file
    levels: int  # in use, the first ones

    def setup(self) -> None:
        """Creates the projections and the codebooks."""
        c = self.config
        shape = (self.stored, c.codes, c.code_width)
        self.input = nn.Dense(c.code_width, use_bias=False)
        self.output = nn.Dense(c.latent, use_bias=False)
        self.embedding_sum = self.param("embedding_sum", nn.initializers.normal(1.0), shape)
        self.cluster_usage = self.param("cluster_usage", nn.initializers.ones, shape[:2])

    def encode(self, x: Float[Array, "B T latent"]) -> Int[Array, "B levels T"]:
        """Takes the nearest centroid, subtracts it, and repeats with what is left."""
        _, codes = jax.lax.scan(_nearest, self.input(x), self.centroids())
        return codes.swapaxes(0, 1)

    def decode(self, codes: Int[Array, "B levels T"]) -> Float[Array, "B T latent"]:
        """Adds the centroids and projects."""
        table = self.centroids()
        centroids = [jnp.take(table[q], codes[:, q], axis=0) for q in range(self.levels)]
        nothing = jnp.zeros((codes.shape[0], codes.shape[2], self.config.code_width))
        return self.output(sum(centroids, nothing))

    def centroids(self) -> Float[Array, "levels C code_width"]:
        """The codebooks in use."""
        usage = jnp.maximum(self.cluster_usage[: self.levels], _MIN_USAGE)
        return self.embedding_sum[: self.levels] / usage[..., None]


def _nearest(
    residual: Float[Array, "B T code_width"], centroids: Float[Array, "C code_width"]
) -> tuple[Float[Array, "B T code_width"], Int[Array, "B T"]]:
    """Returns what the nearest centroid leaves, and its index."""
    dot = jnp.einsum("BTw,Cw->BTC", residual, centroids)
    distance = jnp.sum(jnp.square(centroids), axis=-1)[None, None] - 2.0 * dot
    codes = layers.argmax(-distance)
    return residual - centroids[codes], codes
