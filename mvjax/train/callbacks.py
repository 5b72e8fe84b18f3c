"""Callbacks of the training loop, for evaluation and samples during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mvjax import tree
from mvjax.train import trackers


class ModelState(NamedTuple):
    """The model at one step, on the devices of the run; the next step overwrites it.

    `ema` is the moving average of the adapters, None without `optim.ema_decay`; frozen parameters have the
    dtype of `train.frozen_dtype`.
    """

    adapters: tree.Tree
    ema: tree.Tree | None
    frozen: tree.Tree

    @property
    def params(self) -> dict[str, Any]:
        """The whole tree, with the moving average of the adapters if there is one, as in evaluation."""
        return tree.merge(self.adapters if self.ema is None else self.ema, self.frozen)


class Findings(NamedTuple):
    """What a call returns: metrics, {name: number or list of numbers}, and tables for the trackers."""

    metrics: Mapping[str, Any]
    tables: Mapping[str, Sequence[trackers.Row]]


@dataclasses.dataclass(frozen=True)
class Callback:
    """A function that the training loop calls every so many steps, after the step is done.

    All processes of a run call it at the same steps, so it may use the arrays that they share. Its time is
    the phase `callbacks` of the log. What the first process's call returns is logged.

    Attributes:
      every: it is called after steps every, 2 every, ...
      call: takes (step, state) and returns metrics, `Findings`, or None. The metrics join those of the step;
        the progress line shows the numbers whose name has no "/". To keep an array of the state after it
        returns, it copies it.
      name: for messages; by default that of the function.
    """

    every: int
    call: Callable[[int, ModelState], Mapping[str, Any] | Findings | None]
    name: str = ""

    def __post_init__(self) -> None:
        """Checks `every` and names the callback."""
        if not self.name:
            object.__setattr__(self, "name", getattr(self.call, "__qualname__", repr(self.call)))
        if self.every < 1:
            raise ValueError(f"callback {self.name}: every: expected at least 1, got {self.every}")

    def run(self, step: int, state: ModelState) -> Findings:
        """Calls it and returns what it found.

        Raises:
          RuntimeError: naming the callback and the step, from the error that it raised.
        """
        try:
            found = self.call(step, state)
        except Exception as error:
            raise RuntimeError(
                f"callback {self.name} failed after step {step}: {type(error).__name__}: {error}"
            ) from error
        return found if isinstance(found, Findings) else Findings(found or {}, {})
