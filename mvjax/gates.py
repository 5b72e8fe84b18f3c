"""Gates: how much of a cross-attention result u enters the residual stream, u * g.

A new gate is one frozen dataclass here: fields, `params`, `__call__`, `upstream`. The gate is applied in
`nn/xattn.py`, `gated_cross_attention`, and u * g is added to the residual stream in `nn/backbone.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

SIGMOID_SHIFT = 4.0  # reference section 2.6: sigmoid gates start near sigmoid(-4) = 0.018

Activation = Literal["sigmoid", "tanh"]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Shape and initializer of one gate parameter."""

    shape: tuple[int, ...]
    init: nn.initializers.Initializer


@dataclasses.dataclass(frozen=True)
class Constant:
    """g = tanh(alpha), or sigmoid(alpha - 4): one learned scalar a layer."""

    activation: Activation = "tanh"

    def params(self, width: int) -> dict[str, ParamSpec]:
        """Parameter paths below `gate/`, with shapes for a backbone `width` wide."""
        del width
        return {"alpha": ParamSpec((), nn.initializers.zeros)}

    def upstream(self) -> dict[str, str]:
        """Parameter path -> name below `cross_attention.gate.` in the Kyutai layout."""
        return {"alpha": "alpha"}

    def __call__(
        self,
        params: Mapping[str, Array],
        u: Float[Array, "*batch D"],
    ) -> Float[Array, "*batch D"]:
        """Returns g, float32, broadcast to the shape of u."""
        alpha = params["alpha"].astype(jnp.float32)
        return jnp.broadcast_to(_activate(alpha, self.activation), u.shape)


@dataclasses.dataclass(frozen=True)
class Conditional:
    """g = act(up(relu(down(u)))), one value a channel; sigmoid logits are shifted by -4.

    With `bias` (candle's LearnableBias) a learned bias of `up` replaces the shift. No code that trains it is
    public; it is initialized like the gate without it: -4 for sigmoid, 0 for tanh (our choice).
    """

    hidden: int = 512
    activation: Activation = "sigmoid"
    bias: bool = False  # learned; exports to candle only

    def params(self, width: int) -> dict[str, ParamSpec]:
        """Parameter paths below `gate/`, with shapes for a backbone `width` wide."""
        specs = {
            "down/kernel": ParamSpec((width, self.hidden), torch_linear_init),
            "up/kernel": ParamSpec((self.hidden, width), torch_linear_init),
        }
        if self.bias:
            start = -SIGMOID_SHIFT if self.activation == "sigmoid" else 0.0
            specs["up/bias"] = ParamSpec((width,), nn.initializers.constant(start))
        return specs

    def upstream(self) -> dict[str, str]:
        """Parameter path -> name below `cross_attention.gate.` in the Kyutai layout."""
        names = {"down/kernel": "alpha.0.weight", "up/kernel": "alpha.2.weight"}
        return {**names, "up/bias": "alpha.2.bias"} if self.bias else names

    def __call__(
        self,
        params: Mapping[str, Array],
        u: Float[Array, "*batch D"],
    ) -> Float[Array, "*batch D"]:
        """Returns g, float32, in the shape of u; the two matmuls run in u's dtype."""
        down, up = params["down/kernel"].astype(u.dtype), params["up/kernel"].astype(u.dtype)
        h = jax.nn.relu(jnp.einsum("...D,DG->...G", u, down))
        logits = jnp.einsum("...G,GD->...D", h, up)
        if self.bias:
            bias = params["up/bias"].astype(u.dtype).reshape((1,) * (u.ndim - 1) + (-1,))
            logits = logits + bias
        shift = 0.0 if self.bias else SIGMOID_SHIFT
        return _activate(logits.astype(jnp.float32), self.activation, shift=shift)


Gate = Constant | Conditional


def torch_linear_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """The default of torch.nn.Linear: uniform in +-1/sqrt(fan_in), with fan_in = shape[-2]."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _activate(logits: Array, activation: Activation, *, shift: float = SIGMOID_SHIFT) -> Array:
    return jnp.tanh(logits) if activation == "tanh" else jax.nn.sigmoid(logits - shift)
