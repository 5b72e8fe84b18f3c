"""What every gate has in common: its parameters' shapes, what it sees, how it is applied."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float

Output = Literal["channel", "head", "scalar"]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Shape and initializer of one gate parameter."""

    shape: tuple[int, ...]
    init: nn.initializers.Initializer


class Seen(NamedTuple):
    """What a gate may look at in each frame."""

    # the result of cross-attention; of a gate a head, which comes earlier, the heads' results side by side
    u: Float[Array, "*batch D"]
    # the residual stream after `norm_xa`, of which the queries are made
    x: Float[Array, "*batch D"]
    q: Float[Array, "*batch N H"]  # the queries
    # how well a head's query fits the image: log of the mean of exp(q k / sqrt(H)) over image tokens,
    # float32; None unless the gate `reads_match`
    match: Float[Array, "*batch N"] | None
    # the same of the last `local_frames` frames: log of the sum of exp of their logits, less the log of the
    # number of image tokens; None without `local_frames`
    local: Float[Array, "*batch N"] | None = None


class Design:
    """What a gate is unless its class says otherwise; a subclass has `params` and `__call__`, too.

    `params(width, heads)` returns parameter paths below `gate/`, with shapes for a backbone of D and N.
    `__call__(params, seen)` returns g, float32: [*batch D], or [*batch N] with output "head".
    """

    # what has a g of its own; that of a head is applied before the output projection mixes the heads
    output: Output = "channel"
    reads_match = False  # whether `Seen.match` is computed
    # frames, itself among them, that a frame attends to beside the image: they get what g takes off
    local_frames: int = 0

    def upstream(self) -> dict[str, str]:
        """Parameter path -> name below `cross_attention.gate.` in the Kyutai layout; none if it has none."""
        return {}
