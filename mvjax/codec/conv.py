"""Causal one-dimensional convolutions that carry their left context as an argument and return value.

A whole signal is one call from the zero state, so streaming and whole-signal results are the same code.
Every kernel is stored [taps, inputs, outputs], also the transposed one.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=(0, 1), out_axis=2)


class Conv(nn.Module):
    """y[t] = bias + sum_j x[t - taps + 1 + j] kernel[j]."""

    inputs: int
    outputs: int
    taps: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B time inputs"], past: Float[Array, "B past inputs"]
    ) -> tuple[Float[Array, "B time outputs"], Float[Array, "B past inputs"]]:
        """Returns the result and the context of the next call."""
        kernel = self.param("kernel", _INIT, (self.taps, self.inputs, self.outputs))
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,))
        seen = jnp.concatenate([past, x], axis=1)
        return _slide(seen, kernel) + bias[None, None], seen[:, x.shape[1] :]

    def start(self, batch: int) -> Float[Array, "B past inputs"]:
        """The context before the first sample: zeros."""
        return jnp.zeros((batch, self.taps - 1, self.inputs))


class StridedConv(nn.Module):
    """A convolution of 2 * stride taps every `stride` samples: a matmul of two adjacent blocks."""

    inputs: int
    outputs: int
    stride: int
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B time inputs"], past: Float[Array, "B stride inputs"]
    ) -> tuple[Float[Array, "B blocks outputs"], Float[Array, "B stride inputs"]]:
        """Returns the result, one for each whole block, and the context of the next call."""
        kernel = self.param("kernel", _INIT, (2 * self.stride, self.inputs, self.outputs))
        seen = jnp.concatenate([past, x], axis=1)
        blocks = seen.reshape(x.shape[0], -1, self.stride * self.inputs)
        y = _slide(blocks, kernel.reshape(2, self.stride * self.inputs, self.outputs))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.outputs,))[None, None]
        return y, seen[:, x.shape[1] :]

    def start(self, batch: int) -> Float[Array, "B stride inputs"]:
        """The context before the first sample: zeros."""
        return jnp.zeros((batch, self.stride, self.inputs))


class TransposedConv(nn.Module):
    """Upsampling by `stride` with 2 * stride taps, the last `stride` outputs trimmed.

    Block t of the result is x[t] kernel[:stride] + x[t-1] kernel[stride:] + bias. Upstream carries the
    overlap (without bias) from call to call; here the last input is carried, which gives the same sum.
    """

    inputs: int
    outputs: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B time inputs"], past: Float[Array, "B 1 inputs"]
    ) -> tuple[Float[Array, "B upsampled outputs"], Float[Array, "B 1 inputs"]]:
        """Returns the result and the context of the next call."""
        kernel = self.param("kernel", _INIT, (2 * self.stride, self.inputs, self.outputs))
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,))
        halves = kernel.reshape(2, self.stride, self.inputs, self.outputs)[::-1]
        taps = halves.transpose(0, 2, 1, 3).reshape(2, self.inputs, self.stride * self.outputs)
        B, T, _ = x.shape
        seen = jnp.concatenate([past, x], axis=1)
        y = _slide(seen, taps).reshape(B, T * self.stride, self.outputs)
        return y + bias[None, None], seen[:, T:]

    def start(self, batch: int) -> Float[Array, "B 1 inputs"]:
        """The context before the first sample: zeros."""
        return jnp.zeros((batch, 1, self.inputs))


class ChannelwiseUpsample(nn.Module):
    """A transposed convolution without bias in which each channel meets only itself."""

    width: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B time width"], past: Float[Array, "B 1 width"]
    ) -> tuple[Float[Array, "B upsampled width"], Float[Array, "B 1 width"]]:
        """Returns the result and the context of the next call."""
        init = nn.initializers.constant(0.5)
        kernel = self.param("kernel", init, (2 * self.stride, self.width))
        B, T, _ = x.shape
        seen = jnp.concatenate([past, x], axis=1)
        now, before = kernel[None, None, : self.stride], kernel[None, None, self.stride :]
        y = seen[:, 1:, None] * now + seen[:, :-1, None] * before
        return y.reshape(B, T * self.stride, self.width), seen[:, T:]

    def start(self, batch: int) -> Float[Array, "B 1 width"]:
        """The context before the first sample: zeros."""
        return jnp.zeros((batch, 1, self.width))


def _slide(
    x: Float[Array, "B time inputs"], kernel: Float[Array, "taps inputs outputs"]
) -> Float[Array, "B valid outputs"]:
    """Correlates along time, without padding: one matmul, with the taps on its narrower side.

    XLA's convolutions of so few channels take from 1 to 10 times as long on a CPU.
    """
    taps, inputs, outputs = kernel.shape
    valid = x.shape[1] - taps + 1
    if 1 < inputs <= outputs:
        windows = jnp.concatenate([x[:, j : j + valid] for j in range(taps)], axis=-1)
        return windows @ kernel.reshape(taps * inputs, outputs)
    every_tap = x @ kernel.transpose(1, 0, 2).reshape(inputs, taps * outputs)
    parts = [every_tap[:, j : j + valid, j * outputs : (j + 1) * outputs] for j in range(taps)]
    return sum(parts[1:], parts[0])
