"""Skipped batches: detects loss spikes by a rolling median, and ends a run that skips too many in a row.

The recent losses are part of the optimizer state, so that checkpoints hold them and a resumed run skips the
same batches as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from mvjax import messages
from mvjax.config import schema
from mvjax.train import distributed, phases


class RecentLosses(NamedTuple):
    """Losses of the last updates, newest first; inf before there were as many."""

    recent_losses: Float[Array, "window"]


def remember(window: int) -> optax.GradientTransformationExtraArgs:
    """Returns an optax transformation that keeps the last `window` losses (`value`), and no more."""

    def init(params: Any) -> Any:
        del params
        return RecentLosses(jnp.full(window, jnp.inf, jnp.float32))  # NaN stops JAX_DEBUG_NANS

    def update(updates: Any, state: Any, params: Any = None, *, value: Any = None, **_: Any):
        earlier = jnp.nan_to_num(state.recent_losses[:-1], nan=jnp.inf, posinf=jnp.inf)  # NaN: once
        newest = jnp.asarray(value, jnp.float32)[None]
        return updates, RecentLosses(jnp.concatenate([newest, earlier]))

    return optax.GradientTransformationExtraArgs(init, update)


def spiked(
    optimizer: optax.OptState, value: Float[Array, ""], *, factor: float | None
) -> Bool[Array, ""]:
    """Returns whether a loss is a spike: above `factor` x the median of the recent losses.

    False before the window is full, and with factor None.
    """
    if factor is None:
        return jnp.zeros((), bool)
    losses = jnp.sort(optax.tree.get(optimizer, "recent_losses"))
    n = len(losses)
    median = (losses[(n - 1) // 2] + losses[n // 2]) / 2  # jnp.median makes NaN of inf
    return jnp.isfinite(losses[-1]) & (value > factor * median)  # inf or NaN: too few


class Skips:
    """The latest skipped steps in a row (`steps`), and whether they reached the limit (`exceeded`)."""

    def __init__(self, limit: int, *, total: int) -> None:
        """`limit` is how many in a row end a run; `total` how many an earlier session skipped."""
        self._limit, self._total = limit, total
        self.steps: list[int] = []
        self.exceeded = False

    def add(self, done: phases.DoneStep | None) -> None:
        """Takes a finished step, whose metric `skipped` counts all skipped steps so far."""
        if done is None or self.exceeded:
            return
        total = int(done.metrics["skipped"])
        self.steps = [*self.steps, done.step] if total > self._total else []
        self._total = total
        self.exceeded = len(self.steps) >= self._limit


def report(
    steps: list[int], ids: Callable[[int], dict[str, list[str]]], *, optim: schema.OptimConfig
) -> str:
    """Returns the error message of a run that skipped too many steps: their samples, and what to do.

    Steps are counted from 1; `ids` returns the sample ids of a batch, counted from 0, by part.
    """
    listing = messages.lines(
        f"step {step}, {part}: {messages.names(names)}"
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
        "steps in a row (train.max_skipped); they were skipped, and the state is saved.\n"
        f"Their samples{whose}:{listing}\n"
        "Check these records. The same command resumes after them; if it ends again, start a new run with "
        f"a lower optim.learning_rate{higher}."
    )
