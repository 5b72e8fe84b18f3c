"""SEANet: the convolutional ends of Mimi, between audio and latents at 25 Hz.

Every module maps (x, state) to (y, state after x); `start` gives the state before the first sample. States
nest as the modules do.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mvjax.codec import conv
from mvjax.config import frozen

ConvState = tuple[Any, ...]  # left contexts of the convolutions

_FIRST_TAPS, _RESIDUAL_TAPS, _LAST_TAPS = 7, 3, 3

# of exp(x) - 1 = x + x^2 / 2! + ..., which from -1/2 to 0 is exact to the last bits of float32
_SERIES = tuple(1 / math.factorial(n) for n in range(8, 0, -1))


def elu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Returns x, or exp(x) - 1 below 0; XLA's own `expm1` takes twice as long on a CPU."""
    below = jnp.minimum(x, 0.0)
    near = functools.reduce(lambda sum_, term: sum_ * below + term, _SERIES, 0.0) * below
    return jnp.where(x > 0, x, jnp.where(below > -0.5, near, jnp.exp(below) - 1))


def context(config: frozen.MimiConfig) -> int:
    """Audio samples before its last that a step of the encoder's result depends on."""
    samples, each = _FIRST_TAPS - 1, 1
    for stride in reversed(config.ratios):
        samples += (_RESIDUAL_TAPS - 1 + 2 * stride - 1) * each
        each *= stride
    return samples + _LAST_TAPS * each - 1


class _Seanet(nn.Module):
    """A convolution, stages, ELU, and another convolution."""

    config: frozen.MimiConfig

    def _parts(self) -> tuple[conv.Conv, list[DownStage] | list[UpStage], conv.Conv]:
        raise NotImplementedError

    def setup(self) -> None:
        """Creates the convolutions in the order of computation."""
        self.first, self.stages, self.last = self._parts()

    def __call__(
        self, x: Float[Array, "B time width"], state: ConvState
    ) -> tuple[Float[Array, "B other_time other_width"], ConvState]:
        """Encodes or decodes a chunk; one to encode is a multiple of the product of the ratios long."""
        first, stages, last = state
        x, first = self.first(x, first)
        after = []
        for stage, past in zip(self.stages, stages, strict=True):
            x, past = stage(x, past)
            after.append(past)
        x, last = self.last(elu(x), last)
        return x, (first, tuple(after), last)

    def start(self, batch: int) -> ConvState:
        """The state before the first sample, or latent."""
        stages = tuple(stage.start(batch) for stage in self.stages)
        return self.first.start(batch), stages, self.last.start(batch)


class SeanetEncoder(_Seanet):
    """Audio [B, samples, 1] to latents [B, steps, latent]; its strides are the ratios in reverse."""

    def _parts(self) -> tuple[conv.Conv, list[DownStage], conv.Conv]:
        c = self.config
        widths = [c.filters * 2**i for i in range(len(c.ratios) + 1)]
        stages = [DownStage(w, s) for w, s in zip(widths, reversed(c.ratios))]
        last = conv.Conv(widths[-1], c.latent, _LAST_TAPS)
        return conv.Conv(1, widths[0], _FIRST_TAPS), stages, last


class SeanetDecoder(_Seanet):
    """Latents [B, steps, latent] to audio [B, samples, 1]; the mirror image of the encoder."""

    def _parts(self) -> tuple[conv.Conv, list[UpStage], conv.Conv]:
        c = self.config
        widths = [c.filters * 2**i for i in range(len(c.ratios), -1, -1)]
        stages = [UpStage(w, s) for w, s in zip(widths, c.ratios)]
        last = conv.Conv(widths[-1], 1, _LAST_TAPS)
        return conv.Conv(c.latent, widths[0], _FIRST_TAPS), stages, last


class DownStage(nn.Module):
    """Residual block, then ELU and a strided convolution that doubles the channels."""

    width: int
    stride: int

    def setup(self) -> None:
        """Creates the residual block and the strided convolution."""
        self.residual = Residual(self.width)
        self.down = conv.StridedConv(self.width, 2 * self.width, self.stride)

    def __call__(
        self, x: Float[Array, "B time width"], state: ConvState
    ) -> tuple[Float[Array, "B shorter wider"], ConvState]:
        """Returns the result and the state after it."""
        x, residual = self.residual(x, state[0])
        x, down = self.down(elu(x), state[1])
        return x, (residual, down)

    def start(self, batch: int) -> ConvState:
        """The state before the first sample."""
        return self.residual.start(batch), self.down.start(batch)


class UpStage(nn.Module):
    """ELU and a transposed convolution that halves the channels, then a residual block."""

    width: int
    stride: int

    def setup(self) -> None:
        """Creates the transposed convolution and the residual block."""
        self.up = conv.TransposedConv(self.width, self.width // 2, self.stride)
        self.residual = Residual(self.width // 2)

    def __call__(
        self, x: Float[Array, "B time width"], state: ConvState
    ) -> tuple[Float[Array, "B longer narrower"], ConvState]:
        """Returns the result and the state after it."""
        x, up = self.up(elu(x), state[0])
        x, residual = self.residual(x, state[1])
        return x, (up, residual)

    def start(self, batch: int) -> ConvState:
        """The state before the first sample."""
        return self.up.start(batch), self.residual.start(batch)


class Residual(nn.Module):
    """x + wide(elu(narrow(elu(x)))), with half the channels in between."""

    width: int

    def setup(self) -> None:
        """Creates both convolutions; the second has one tap."""
        self.narrow = conv.Conv(self.width, self.width // 2, _RESIDUAL_TAPS)
        self.wide = nn.Dense(self.width)

    def __call__(
        self, x: Float[Array, "B time width"], past: Float[Array, "B past width"]
    ) -> tuple[Float[Array, "B time width"], Float[Array, "B past width"]]:
        """Returns the result and the context of the next call."""
        y, past = self.narrow(elu(x), past)
        return x + self.wide(elu(y)), past

    def start(self, batch: int) -> Float[Array, "B past width"]:
        """The context before the first sample."""
        return self.narrow.start(batch)
