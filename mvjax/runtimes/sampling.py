"""Samples ids from logits in numpy, for the runtimes that sample on the host."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mvjax.runtimes import interface


class HostSampler:
    """One conversation's sampling of text and audio, with one random state."""

    def __init__(self, text: interface.Sampling, audio: interface.Sampling, *, seed: int) -> None:
        self._text, self._audio, self._seed = text, audio, seed
        self.reset()

    def reset(self) -> None:
        """Returns to the random state of the seed."""
        self._random = np.random.default_rng(self._seed)

    def text(self, logits: Float[np.ndarray, "V"]) -> int:
        """Returns a text token."""
        return sample(logits, self._text, self._random)

    def audio(self, logits: Float[np.ndarray, "C"]) -> int:
        """Returns an audio code."""
        return sample(logits, self._audio, self._random)


def sample(
    logits: Float[np.ndarray, "vocabulary"],
    sampling: interface.Sampling,
    random: np.random.Generator,
) -> int:
    """Returns one id: the most likely (greedy decoding), or drawn from softmax(logits / temperature)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -sampling.top_k)[-sampling.top_k]] = -np.inf
    weights = np.exp(scaled - scaled.max())
    return int(random.choice(len(weights), p=weights / weights.sum()))
