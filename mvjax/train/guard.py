"""Batches that must not reach the optimizer: loss spikes, told by a rolling median, and too many in a row.

The losses that the median is of lie in the optimizer's state, so that checkpoints hold them and a resumed run
judges as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from mvjax.config import schema
from mvjax.train import clock, distributed

_NAME = "recent_losses"


class Recent(NamedTuple):
    """Losses of the last updates, newest first; NaN where there was none yet."""

    recent_losses: Float[Array, "window"]


def remember(window: int) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that leaves the updates alone and remembers the last `window` losses.

    Its update takes the loss as `value`.
    """

    def init(params: Any) -> Any:
        del params
        return Recent(jnp.full(window, jnp.nan, jnp.float32))

    def update(updates: Any, state: Any, params: Any = None, *, value: Any = None, **_: Any):
        newest = jnp.asarray(value, jnp.float32)[None]
        return updates, Recent(jnp.concatenate([newest, state.recent_losses[:-1]]))

    return optax.GradientTransformationExtraArgs(init, update)


def spiked(
    optimizer: optax.OptState, value: Float[Array, ""], *, factor: float | None
) -> Bool[Array, ""]:
    """Returns whether a loss exceeds `factor` x the median of the remembered ones.

    Never before the window is full, and never with factor None.
    """
    if factor is None:
        return jnp.zeros((), bool)
    losses = optax.tree.get(optimizer, _NAME)
    return value > factor * jnp.median(losses)  # NaN while there are too few, so False


class Skips:
    """Counts steps in a row that changed nothing.

    Attributes:
      steps: these steps.
      exceeded: whether they have become as many as the limit.
    """

    def __init__(self, limit: int, *, total: int) -> None:
        """`limit` in a row end a run; `total` were skipped before."""
        self._limit, self._total = limit, total
        self.steps: list[int] = []
        self.exceeded = False

    def add(self, settled: clock.Settled | None) -> None:
        """Takes a step that is done; its metrics count all that were skipped so far."""
        if settled is None or self.exceeded:
            return
        total = int(settled.metrics["skipped"])
        self.steps = [*self.steps, settled.step] if total > self._total else []
        self._total = total
        self.exceeded = len(self.steps) >= self._limit


def report(
    steps: list[int],
    ids: Callable[[int], dict[str, list[str]]],
    *,
    optim: schema.OptimConfig,
) -> str:
    """Returns the message with which a run ends after too many skipped steps: which samples, what to do.

    `ids` tells the samples of a batch, counted from 0, by part.
    """
    listing = "".join(
        f"\n  step {step}, {part}: {', '.join(names)}"
        for step in steps
        for part, names in ids(step - 1).items()
        if names
    )
    spikes, higher = "", ""
    if optim.spike_factor is not None:
        spikes = f" and a loss below {optim.spike_factor:g} x its recent median"
        higher = " or a higher optim.spike_factor"
    whose = f" (of {distributed.name()})" if distributed.name() else ""
    return (
        f"steps {steps[0]} to {steps[-1]}: expected finite gradients{spikes}, got none in {len(steps)} "
        "steps in a row (train.max_skipped); they changed no parameter, and the state is saved.\n"
        f"Their samples{whose}:{listing}\n"
        "Look at these records. The same command goes on after them; if it ends again, train anew with a "
        f"lower optim.learning_rate{higher}."
    )
