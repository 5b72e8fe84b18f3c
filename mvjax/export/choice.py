"""One row of the compatibility matrix, and how its reasons are written for several runtimes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from mvjax.config import schema

Model = schema.ModelConfig


@dataclasses.dataclass(frozen=True)
class DesignChoice:
    """One row: a choice that a design makes, and what the targets make of it."""

    choice: str  # its name in `mvjax export --list`
    fields: tuple[str, ...]  # paths below ModelConfig that make the choice, for messages
    made_by: Callable[[Model], bool]
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)  # {target: why}
    remedy: str = ""
    # {target: what it does instead, or how it has to be started: a verb and the rest}
    nearly: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What is chosen; of each kind, a model must make a choice that is listed."""
        return self.choice.partition(":")[0]


def of(*targets: str, reason: str) -> dict[str, str]:
    """Returns one reason for these targets."""
    return dict.fromkeys(targets, reason)


def everywhere(reason: str) -> dict[str, str]:
    """Returns one reason for all targets."""
    return of("torch", "mlx", "candle", reason=reason)
