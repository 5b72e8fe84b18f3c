"""The SigLIP image encoder; its parameter tree is big_vision's `img` tree with scanned blocks.

Pre-LN transformer over square patches, learned positions, no mask, no class token, no pooling head;
the final norm is included. Source: big_vision/models/vit.py, `_Model`; reference section 3.2.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mvjax.config import schema
from mvjax.nn import attention
from mvjax.nn import compute as compute_lib

NORM_EPS = 1e-6


class Siglip(nn.Module):
    """Image encoder; `dtype` is of matmuls and activations, parameters, norms and softmax are float32."""

    config: schema.SiglipConfig
    dtype: schema.Dtype = "float32"
    compute: compute_lib.Compute = compute_lib.PLAIN

    @nn.compact
    def __call__(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B S E"]:
        """Encodes images with values in [-1, 1] into one feature per patch, in row-major order.

        Raises:
          ValueError: if the images are not the configured square, naming both sizes.
        """
        c = self.config
        if pixels.shape[1:3] != (c.image_size, c.image_size):
            raise ValueError(
                f"siglip: images must be {c.image_size}x{c.image_size} pixels,"
                f" got {pixels.shape[1]}x{pixels.shape[2]}; resize them (data/images.py)"
            )
        square = (c.patch, c.patch)
        embed = nn.Conv(c.width, square, square, "VALID", dtype=self.dtype, name="embedding")
        x = embed(pixels.astype(self.dtype)).reshape(pixels.shape[0], -1, c.width)
        init = nn.initializers.normal(c.width**-0.5)
        positions = self.param("pos_embedding", init, (1, x.shape[1], c.width))
        x = x + positions.astype(self.dtype)
        return SiglipEncoder(c, self.dtype, self.compute, name="Transformer")(x)


class SiglipEncoder(nn.Module):
    """The stack of blocks, parameters stacked on axis 0, and the final norm."""

    config: schema.SiglipConfig
    dtype: schema.Dtype = "float32"
    compute: compute_lib.Compute = compute_lib.PLAIN

    @nn.compact
    def __call__(self, x: Float[Array, "B S E"]) -> Float[Array, "B S E"]:
        """Returns the normed output of the last block."""
        blocks = nn.scan(
            SiglipBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.layers,
        )
        x, _ = blocks(self.config, self.dtype, self.compute, name="encoderblock")(x)
        return _norm(x, self.dtype, "encoder_norm", eps=self.config.final_norm_eps)


class SiglipBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); shaped as the body of a scan."""

    config: schema.SiglipConfig
    dtype: schema.Dtype = "float32"
    compute: compute_lib.Compute = compute_lib.PLAIN

    @nn.compact
    def __call__(self, x: Float[Array, "B S E"]) -> tuple[Float[Array, "B S E"], None]:
        """Returns (the residual stream, nothing to stack)."""
        x = self.compute.shard_rows(x)

        def attend(q: Array, k: Array, v: Array, **_: Any) -> Array:
            return attention.attend_by_kernel(q, k, v, context=None, compute=self.compute)

        attention_layer = nn.MultiHeadDotProductAttention(
            self.config.heads,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            attention_fn=attend,
            name="MultiHeadDotProductAttention_0",
        )
        x = x + attention_layer(_norm(x, self.dtype, "LayerNorm_0"))
        y = _norm(x, self.dtype, "LayerNorm_1")
        return x + SiglipMlp(self.config, self.dtype, name="MlpBlock_0")(y), None


class SiglipMlp(nn.Module):
    """Two biased layers around a tanh-approximated GELU."""

    config: schema.SiglipConfig
    dtype: schema.Dtype = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B S E"]) -> Float[Array, "B S E"]:
        """Returns Dense_1(gelu(Dense_0(x)))."""
        init = nn.initializers.xavier_uniform()
        y = nn.Dense(self.config.hidden, dtype=self.dtype, kernel_init=init, name="Dense_0")(x)
        y = nn.gelu(y)
        return nn.Dense(self.config.width, dtype=self.dtype, kernel_init=init, name="Dense_1")(y)


def _norm(x: Array, dtype: schema.Dtype, name: str, *, eps: float = NORM_EPS) -> Array:
    """LayerNorm in float32, cast back to the matmul dtype; called inside a compact method."""
    # E[x^2] - E[x]^2, the fast variance, loses digits on the large-mean channels of a ViT
    norm = nn.LayerNorm(eps, dtype=jnp.float32, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(dtype)
