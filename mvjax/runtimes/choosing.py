"""Sampling in an engine's framework, written once for PyTorch and MLX; `sampling` defines it."""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import numpy as np

from mvjax.runtimes import interface, sampling

Tensor = Any  # an array of the framework


class Known(NamedTuple):
    """What the host knows of a frame's draws, which spares work where nothing was compiled or captured.

    Attributes:
      text_top_k, audio_top_k: what `top_k` of no row exceeds; 0 if all rows decode greedily.
      penalized: whether any row penalizes repetition, or changes PAD.
    """

    text_top_k: int
    audio_top_k: int
    penalized: bool


NOTHING_KNOWN = Known(interface.MAX_TOP_K, interface.MAX_TOP_K, True)


def known(draws: sampling.Draws) -> Known:
    """Looks at the draws of a frame, on the host."""
    limits = np.where(draws.temperature > 0, draws.top_k.clip(1, interface.MAX_TOP_K), 0).max(0)
    changed = (draws.penalty != 1).any() or draws.pad_multiplier.any()
    return Known(int(limits[0]), int(limits[1]), bool(changed))


class Chooser(abc.ABC):
    """Chooses the ids of B rows, each as its draws say."""

    xp: Any  # torch or mlx.core: what both name alike

    @abc.abstractmethod
    def _as(self, x: Tensor, like: Tensor) -> Tensor:
        """To the type of `like`."""

    @abc.abstractmethod
    def _largest(self, x: Tensor, count: int) -> Tensor:
        """Returns the `count` largest of each row of x [B, V], in descending order."""

    @abc.abstractmethod
    def _at(self, x: Tensor, index: Tensor) -> Tensor:
        """Returns x[b, index[b]] as [B, 1], for x [B, V] and ids [B]."""

    @abc.abstractmethod
    def _marked(self, ids: Tensor, size: int) -> Tensor:
        """Returns bool [B, size]: whether an id is among a row's `ids` [B, any], which are below `size`."""

    def penalized(self, logits: Tensor, draws: Any) -> Tensor:
        """As `sampling.penalized`, for logits [B, V]."""
        where, V, penalty = self.xp.where, logits.shape[1], draws.penalty[:, None]
        recent = self._marked(where(draws.recent == sampling.NONE, V, draws.recent), V + 1)[:, :V]
        other = where(logits >= 0, logits / penalty, logits * penalty)
        bonus = (draws.pad_multiplier * draws.temperature[:, 0])[:, None]
        return where(recent, other, logits) + where(self.xp.arange(V) == sampling.PAD, bonus, 0.0)

    def choose(self, logits: Tensor, draws: Any, stream: int, top_k: int) -> Tensor:
        """As `sampling.choose`, for logits [B, V]; stream 0 is text, 1 + q codebook q. Returns ids [B].

        `top_k` is that of `Known`.
        """
        where, V, kind = self.xp.where, logits.shape[1], min(stream, 1)
        if top_k == 0:
            return self._as(logits.argmax(-1), draws.top_k)
        heat, count = draws.temperature[:, kind], draws.top_k[:, kind]
        scaled = logits / where(heat == 0, 1.0, heat)[:, None]
        largest = self._largest(scaled, min(top_k, V))
        least = self._at(largest, self.xp.clip(count - 1, 0, largest.shape[1] - 1))
        dropped = ((count > 0) & (count < V))[:, None] & (scaled < least)
        scaled = where(dropped, -math.inf, scaled)
        passed = self.xp.cumsum(self.xp.exp(scaled - largest[:, :1]), 1)
        point = draws.uniform[:, stream, None] * passed[:, -1:]
        ids = where(heat == 0, logits.argmax(-1), (passed <= point).sum(-1))
        return self._as(ids, count)
