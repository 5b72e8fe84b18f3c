"""Gates: how much of a cross-attention result u enters the residual stream, u * g.

A new gate is one frozen dataclass here, a `Design` with fields, `params` and `__call__`, and its name in the
union `Gate`. It is applied in `nn/xattn.py`, `apply_gate`, in training and in the JAX runtime alike, and
u * g is added to the residual stream in `nn/backbone.py`. The first two are upstream's; the others are ours,
and no upstream runtime has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mvjax import gating

SIGMOID_SHIFT = 4.0  # reference section 2.6: sigmoid gates start near sigmoid(-4) = 0.018

Activation = Literal["sigmoid", "tanh"]
Design = gating.Design
ParamSpec = gating.ParamSpec
Seen = gating.Seen


@dataclasses.dataclass(frozen=True)
class Constant(Design):
    """g = tanh(alpha), or sigmoid(alpha - 4): one learned scalar a layer."""

    activation: Activation = "tanh"

    def params(self, width: int, heads: int) -> dict[str, ParamSpec]:
        """As `Design`."""
        del width, heads
        return {"alpha": ParamSpec((), nn.initializers.zeros)}

    def upstream(self) -> dict[str, str]:
        """Parameter path -> name below `cross_attention.gate.` in the Kyutai layout."""
        return {"alpha": "alpha"}

    def __call__(self, params: Mapping[str, Array], seen: Seen) -> Float[Array, "*batch D"]:
        """As `Design`; g is the same everywhere."""
        alpha = params["alpha"].astype(jnp.float32)
        return jnp.broadcast_to(_activate(alpha, self.activation), seen.u.shape)


@dataclasses.dataclass(frozen=True)
class Conditional(Design):
    """g = act(up(relu(down(u)))), one value a channel; sigmoid logits are shifted by -4.

    With `bias` (candle's LearnableBias) a learned bias of `up` replaces the shift. No code that trains it is
    public; it is initialized like the gate without it: -4 for sigmoid, 0 for tanh (our choice).
    """

    hidden: int = 512
    activation: Activation = "sigmoid"
    bias: bool = False  # learned; exports to candle only

    def params(self, width: int, heads: int) -> dict[str, ParamSpec]:
        """As `Design`."""
        del heads
        specs = _mlp(width, self.hidden, width)
        if self.bias:
            start = -SIGMOID_SHIFT if self.activation == "sigmoid" else 0.0
            specs["up/bias"] = ParamSpec((width,), nn.initializers.constant(start))
        return specs

    def upstream(self) -> dict[str, str]:
        """Parameter path -> name below `cross_attention.gate.` in the Kyutai layout."""
        names = {"down/kernel": "alpha.0.weight", "up/kernel": "alpha.2.weight"}
        return {**names, "up/bias": "alpha.2.bias"} if self.bias else names

    def __call__(self, params: Mapping[str, Array], seen: Seen) -> Float[Array, "*batch D"]:
        """As `Design`; the two matmuls run in u's dtype."""
        u = seen.u
        logits = _mlp_logits(params, u)
        if self.bias:
            bias = params["up/bias"].astype(u.dtype).reshape((1,) * (u.ndim - 1) + (-1,))
            logits = logits + bias
        shift = 0.0 if self.bias else SIGMOID_SHIFT
        return _activate(logits.astype(jnp.float32), self.activation, shift=shift)


@dataclasses.dataclass(frozen=True)
class Mlp(Design):
    """g = act(up(relu(down(input))) - shift): `Conditional` with what that holds fixed as fields.

    With output="head" and sees="x" it is the head-specific gate of Qwen's "Gated Attention for Large Language
    Models" (arXiv 2505.06708) with hidden units.
    """

    hidden: int = 512
    output: gating.Output = "channel"  # "scalar": one g for all channels
    sees: Literal["u", "x", "both"] = "u"  # the gate's input, fields of `Seen`
    activation: Activation = "sigmoid"
    shift: float = SIGMOID_SHIFT  # of sigmoid logits

    def params(self, width: int, heads: int) -> dict[str, ParamSpec]:
        """As `Design`."""
        inputs = 2 * width if self.sees == "both" else width
        return _mlp(
            inputs, self.hidden, {"channel": width, "head": heads, "scalar": 1}[self.output]
        )

    def __call__(self, params: Mapping[str, Array], seen: Seen) -> Float[Array, "*batch gates"]:
        """As `Design`; the two matmuls run in u's dtype."""
        both = jnp.concatenate([seen.u, seen.x], axis=-1) if self.sees == "both" else None
        inputs = {"u": seen.u, "x": seen.x, "both": both}[self.sees]
        logits = _mlp_logits(params, inputs).astype(jnp.float32)
        g = _activate(logits, self.activation, shift=self.shift)
        return jnp.broadcast_to(g, seen.u.shape) if self.output == "scalar" else g


@dataclasses.dataclass(frozen=True)
class NullKey(Design):
    """g = sigmoid(match - q key / sqrt(H) - threshold), one a head: a learned null key takes attention away.

    Weakness that it is made for: softmax over image tokens always sums to one, so talk that has nothing to do
    with the image still gets an average of its values, and a gate that sees only this average must find out
    that nothing fitted: softmax has divided how well anything fitted out of it. g puts that back: it is the
    share of attention that the image keeps when a null key with a value of zero joins its tokens, its logit
    q key / sqrt(H) + threshold + log S (so that resolution does not matter). "Nothing here is relevant" then
    costs nothing, at D + N parameters a layer in place of the D D / 4 of `Conditional`.
    """

    threshold: float = SIGMOID_SHIFT  # initial; g starts near sigmoid(-threshold)

    output, reads_match = "head", True

    def params(self, width: int, heads: int) -> dict[str, ParamSpec]:
        """As `Design`."""
        return {
            "key": ParamSpec((heads, width // heads), nn.initializers.zeros),
            "threshold": ParamSpec((heads,), nn.initializers.constant(self.threshold)),
        }

    def __call__(self, params: Mapping[str, Array], seen: Seen) -> Float[Array, "*batch N"]:
        """As `Design`; in float32, as softmax."""
        assert seen.match is not None
        key, threshold = (params[name].astype(jnp.float32) for name in ("key", "threshold"))
        null = jnp.einsum("...NH,NH->...N", seen.q.astype(jnp.float32), key) * key.shape[-1] ** -0.5
        return jax.nn.sigmoid(
            seen.match - null - jnp.expand_dims(threshold, tuple(range(null.ndim - 1)))
        )


@dataclasses.dataclass(frozen=True)
class Agreement(Design):
    """g = sigmoid(a b / sqrt(rank) - 4), one a head, with a and b the head's views of x and of u.

    Weakness that it is made for: `Conditional` sees what the image offers (u) but not what the talk is about
    (x), so it opens for a striking image in talk about something else. Whether offer and demand agree is a
    product of the two, which an MLP of their concatenation has to approximate and a bilinear form has. Of low
    rank: 2 D N rank parameters a layer, and a head closes alone.
    """

    rank: int = 4  # numbers of each view

    output = "head"

    def params(self, width: int, heads: int) -> dict[str, ParamSpec]:
        """As `Design`."""
        spec = ParamSpec((width, heads * self.rank), torch_linear_init)
        return {"demand/kernel": spec, "offer/kernel": spec}

    def __call__(self, params: Mapping[str, Array], seen: Seen) -> Float[Array, "*batch N"]:
        """As `Design`; the two matmuls run in u's dtype, their product is summed in float32."""
        views = []
        for inputs, name in ((seen.x, "demand"), (seen.u, "offer")):
            kernel = params[f"{name}/kernel"].astype(inputs.dtype)
            view = jnp.einsum("...D,DR->...R", inputs, kernel).astype(jnp.float32)
            views.append(view.reshape(*view.shape[:-1], -1, self.rank))
        agreement = jnp.sum(views[0] * views[1], axis=-1) * self.rank**-0.5
        return _activate(agreement, "sigmoid")


@dataclasses.dataclass(frozen=True)
class DeadZone(Design):
    """g = max(0, (s - floor) / (1 - floor)), s = sigmoid(up(relu(down(u))) - shift), one value a channel.

    Weakness that it is made for: a sigmoid is never 0. Every layer leaks a little of the image into talk
    about something else, and the leaks add up over layers (an image alone, without talk about it, costs the
    paper's models 8 to 21% of their MMLU, figure 5). Here a gate can be shut: a frame whose gates are all in
    the dead zone is plain Moshi, bit for bit. The gradient goes straight through it, as if g were below zero,
    or a gate that has shut could not learn to open. The shift follows from `floor`: g starts near 0.018, too.
    """

    hidden: int = 512
    floor: float = 0.1  # of s: below it the gate is shut

    def __post_init__(self) -> None:
        """Checks the floor."""
        if not 0 < self.floor < 1:
            raise ValueError(f"floor: expected between 0 and 1, got {self.floor}")

    def params(self, width: int, heads: int) -> dict[str, ParamSpec]:
        """As `Design`."""
        del heads
        return _mlp(width, self.hidden, width)

    def __call__(self, params: Mapping[str, Array], seen: Seen) -> Float[Array, "*batch D"]:
        """As `Design`; the two matmuls run in u's dtype."""
        logits = _mlp_logits(params, seen.u).astype(jnp.float32)
        begin = self.floor + (1 - self.floor) / (1 + math.exp(SIGMOID_SHIFT))  # s, at logits of 0
        s = jax.nn.sigmoid(logits + math.log(begin / (1 - begin)))
        open_above = (s - self.floor) / (1 - self.floor)
        return open_above + jax.lax.stop_gradient(jax.nn.relu(open_above) - open_above)


@dataclasses.dataclass(frozen=True)
class LocalWindow(Design):
    """g = the share of attention that the image gets beside the last frames, whose values get the rest.

    Fusion as in Kyutai's CASA (arXiv 2512.19535): queries attend to image tokens and, causally, to the
    residual stream in a local window, in one softmax, so that talk without need of the image attends to
    itself. It differs: self-attention stays as it is, the window is the last frames and not what follows an
    image, and there are no rotary positions. It has no parameters: the kernels of the image's keys and values
    make those of frames, for which image tokens must be as wide as the backbone. Like no gate, it does not
    begin shut.
    """

    local_frames: int = 8  # the runtime keeps their keys and values in a ring

    output, reads_match = "head", True

    def __post_init__(self) -> None:
        """Checks the window."""
        if self.local_frames < 1:
            raise ValueError(f"local_frames: expected at least 1, got {self.local_frames}")

    def params(self, width: int, heads: int) -> dict[str, ParamSpec]:
        """As `Design`."""
        del width, heads
        return {}

    def __call__(self, params: Mapping[str, Array], seen: Seen) -> Float[Array, "*batch N"]:
        """As `Design`."""
        del params
        assert seen.match is not None and seen.local is not None
        return jax.nn.sigmoid(seen.match - seen.local)


Gate = Constant | Conditional | Mlp | NullKey | Agreement | DeadZone | LocalWindow


def torch_linear_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """The default of torch.nn.Linear: uniform in +-1/sqrt(fan_in), with fan_in = shape[-2]."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _mlp(inputs: int, hidden: int, outputs: int) -> dict[str, ParamSpec]:
    return {
        "down/kernel": ParamSpec((inputs, hidden), torch_linear_init),
        "up/kernel": ParamSpec((hidden, outputs), torch_linear_init),
    }


def _mlp_logits(params: Mapping[str, Array], x: Float[Array, "*batch inputs"]) -> Array:
    """Returns up(relu(down(x))) in the dtype of x, whose width D need not be that of the result."""
    down, up = params["down/kernel"].astype(x.dtype), params["up/kernel"].astype(x.dtype)
    h = jax.nn.relu(jnp.einsum("...D,DG->...G", x, down))
    return jnp.einsum("...G,GD->...D", h, up)


def _activate(logits: Array, activation: Activation, *, shift: float = SIGMOID_SHIFT) -> Array:
    return jnp.tanh(logits) if activation == "tanh" else jax.nn.sigmoid(logits - shift)
