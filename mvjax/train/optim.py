"""The optimizer: AdamW on the adapters, linear warmup and cosine decay, global clipping."""

from __future__ import annotations

import re

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mvjax import tree
from mvjax.config import schema
from mvjax.train import guard

# By name, not by rank: a per-layer vector such as norm_xa/scale has two axes with the layers stacked.
DECAYED = r".*/(kernel|embedding)"


def learning_rate(step: ArrayLike, *, settings: schema.OptimConfig, steps: int) -> Float[Array, ""]:
    """Returns the rate of a step: linear to the peak over `warmup_steps`, then half a cosine.

    Step 0 already learns (peak / warmup_steps); the last step of `steps` has `final_lr_fraction` of the peak.
    """
    now = jnp.asarray(step, jnp.float32)
    warmup = (now + 1) / max(settings.warmup_steps, 1)
    span = max(steps - 1 - settings.warmup_steps, 1)
    done = jnp.clip((now - settings.warmup_steps) / span, 0, 1)
    low = settings.final_lr_fraction
    cosine = low + (1 - low) * 0.5 * (1 + jnp.cos(jnp.pi * done))
    return settings.learning_rate * jnp.where(now < settings.warmup_steps, warmup, cosine)


def make(settings: schema.OptimConfig, *, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `steps` steps.

    Raises:
      ValueError: if the warmup does not end within the run.
    """
    if not 0 <= settings.warmup_steps < steps:
        raise ValueError(
            f"optim.warmup_steps: expected 0 <= warmup_steps < train.steps = {steps}, "
            f"got {settings.warmup_steps}"
        )
    b1, b2 = settings.betas
    remembered = () if settings.spike_factor is None else (guard.remember(settings.spike_window),)
    return optax.chain(
        *remembered,
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            lambda step: learning_rate(step, settings=settings, steps=steps),
            b1=b1,
            b2=b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            mask=decayed,
        ),
    )


def decayed(params: tree.Tree) -> dict:
    """Returns the tree of booleans: which parameters weight decay pulls to zero (the matrices)."""
    return tree.unflatten(
        {path: re.fullmatch(DECAYED, path) is not None for path in tree.flatten(params)}
    )
