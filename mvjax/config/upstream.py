"""Config fields in which the released runtimes differ, and the value of each runtime.

    model = upstream.imitate(config.model, "kyuteye_pt")

The runtimes of MoshiVis compute different functions. "ours" is what the frozen weights were trained with, as
far as that is known, and the default of `mvjax.config.schema`. Reference sections 2.2, 2.4, 3.2, 5.2 - 5.4.
Not imitated: how a runtime rounds and resizes images, what it does in single frames, and limits on the length
of a conversation.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from mvjax.config import schema

Runtime = Literal["ours", "kyuteye_pt", "kyuteye_mlx", "candle"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

_TABLE: dict[str, tuple[Any, Any, Any, Any]] = {
    # field of ModelConfig                 ours           kyuteye_pt     kyuteye_mlx    candle
    "depformer.norm":                   ("mean_square", "variance",    "mean_square", "mean_square"),
    "cross_attention.image_norm":       ("variance",    "variance",    "mean_square", "mean_square"),
    "cross_attention.image_norm_eps":   (1e-5,          1e-5,          1e-8,          1e-8),
    "siglip.final_norm_eps":            (1e-6,          1e-6,          1e-5,          1e-6),
    "backbone.context_has_self":        (True,          True,          False,         False),
    "stream.first_step_forcing":        (True,          False,         True,          True),
    "stream.user_early":                (False,         True,          False,         False),
}  # fmt: skip


def settings(runtime: str) -> dict[str, Any]:
    """Returns {path below ModelConfig: value} of every field in which the runtimes differ.

    Raises:
      ValueError: for an unknown runtime, naming the known ones.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {list(RUNTIMES)}, got {runtime!r}")
    return {path: values[RUNTIMES.index(runtime)] for path, values in _TABLE.items()}


def imitate(model: schema.ModelConfig, runtime: str) -> schema.ModelConfig:
    """Returns the config with the fields of `settings(runtime)`; raises as that does."""
    for path, value in settings(runtime).items():
        part, field = path.split(".")
        changed = dataclasses.replace(getattr(model, part), **{field: value})
        model = dataclasses.replace(model, **{part: changed})
    return model
