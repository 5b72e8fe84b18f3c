"""The optimizer: AdamW on the adapters, linear warmup and cosine decay, gradient clipping by global norm."""

from __future__ import annotations

import re

import jax
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mvjax import tree
from mvjax.config import schema
from mvjax.train import guard

# By name, not by rank: a per-layer vector such as norm_xa/scale has two axes with the layers stacked.
DECAYED = r".*/(kernel|embedding)"


def learning_rate(step: ArrayLike, *, settings: schema.OptimConfig, steps: int) -> Float[Array, ""]:
    """Returns the learning rate of a step, counted from 0; `schedule` says how it changes."""
    return jax.numpy.asarray(schedule(settings, steps=steps)(step), jax.numpy.float32)


def schedule(settings: schema.OptimConfig, *, steps: int) -> optax.Schedule:
    """Returns the learning rate schedule: linear to the peak over `warmup_steps`, then half a cosine.

    Step 0 already learns (peak / warmup_steps); the last step of `steps` has `final_lr_fraction` of the
    peak. `optax.warmup_cosine_decay_schedule` is the same two pieces, but rises for one step more: from a
    rate of its own at step 0 to the peak at step `warmup_steps`.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    decay_steps = max(steps - 1 - warmup, 1)
    fall = optax.cosine_decay_schedule(peak, decay_steps, alpha=settings.final_lr_fraction)
    return optax.join_schedules([rise, fall], [warmup])


def make(settings: schema.OptimConfig, *, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `steps` steps.

    Its state is a dict by these names, which checkpoints keep: `adam/mu/...` and so on.

    Raises:
      ValueError: if the warmup does not end within the run.
    """
    if not 0 <= settings.warmup_steps < steps:
        raise ValueError(
            f"optim.warmup_steps: expected 0 <= warmup_steps < train.steps = {steps}, "
            f"got {settings.warmup_steps}"
        )
    b1, b2 = settings.betas
    transformations = {
        "clip": optax.clip_by_global_norm(settings.clip_norm),
        "adam": optax.scale_by_adam(b1, b2, settings.eps),
        "weight_decay": optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        "schedule": optax.scale_by_learning_rate(schedule(settings, steps=steps)),
    }
    if settings.spike_factor is not None:
        transformations = {"spikes": guard.remember(settings.spike_window), **transformations}
    return optax.named_chain(*transformations.items())


def decayed(params: tree.Tree) -> dict:
    """Returns the tree of booleans: which parameters weight decay pulls to zero (the matrices)."""
    return tree.unflatten(
        {path: re.fullmatch(DECAYED, path) is not None for path in tree.flatten(params)}
    )
