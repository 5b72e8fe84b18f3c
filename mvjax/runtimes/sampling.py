"""Sampling by inverse transform: the host draws one uniform number an id, an engine turns it into the id.

So the settings and the random state of a conversation are inputs of the step, not part of the compiled
program, and every runtime chooses the same id from the same logits. `choose` is the definition, in numpy;
each engine has it in its framework.
"""

from __future__ import annotations

import collections
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from mvjax.runtimes import interface

PAD, EPAD = 3, 0  # text ids that repetition does not count; reference section 1.6
COLD = 1e-3  # a lower temperature is greedy decoding: logits divided by it are beyond float32's precision
NONE = -1  # fills `Draws.recent`


class Draws(NamedTuple):
    """How B rows sample a frame: text in column 0, then each codebook.

    Attributes:
      uniform: in [0, 1).
      temperature: of text and of audio; 0 is greedy decoding.
      top_k: of text and of audio; 0: all.
      recent: text ids that are penalized, NONE where there are fewer.
      penalty: of repetition.
      pad_multiplier: of PAD's probability, as an exponent.
    """

    uniform: Float32[np.ndarray, "B 1+Q"]
    temperature: Float32[np.ndarray, "B 2"]
    top_k: Int32[np.ndarray, "B 2"]
    recent: Int32[np.ndarray, "B recent"]
    penalty: Float32[np.ndarray, "B"]
    pad_multiplier: Float32[np.ndarray, "B"]


def greedy(rows: int, codebooks: int) -> Draws:
    """Returns the draws of rows that decode greedily, to be written into."""
    return Draws(
        uniform=np.zeros((rows, 1 + codebooks), np.float32),
        temperature=np.zeros((rows, 2), np.float32),
        top_k=np.zeros((rows, 2), np.int32),
        recent=np.full((rows, interface.MAX_PENALTY_CONTEXT), NONE, np.int32),
        penalty=np.ones(rows, np.float32),
        pad_multiplier=np.zeros(rows, np.float32),
    )


class Sampler:
    """One conversation's settings, random state and recent text."""

    def __init__(
        self, text: interface.Sampling, audio: interface.Sampling, *, seed: int, codebooks: int
    ) -> None:
        self._text, self._audio, self._seed, self._codebooks = text, audio, seed, codebooks
        self.reset()

    def reset(self) -> None:
        """Returns to the random state of the seed."""
        self._random = np.random.default_rng(self._seed)
        self._recent = collections.deque[int](maxlen=self._text.repetition_penalty_context)

    def change(self, text: interface.Sampling, audio: interface.Sampling) -> None:
        """Takes other settings; random state and recent text go on."""
        self._text, self._audio = text, audio
        self._recent = collections.deque(self._recent, maxlen=text.repetition_penalty_context)

    def write(self, draws: Draws, row: int) -> None:
        """Writes how the next frame is sampled."""
        uniform = self._random.random(1 + self._codebooks, np.float32)
        draws.uniform[row] = uniform * np.float32(1 - 2**-22)  # times a sum it stays below the sum
        warm = (self._text.temperature, self._audio.temperature)
        draws.temperature[row] = [0.0 if t < COLD else t for t in warm]
        draws.top_k[row] = self._text.top_k, self._audio.top_k
        draws.recent[row, : len(self._recent)] = self._recent
        draws.penalty[row] = self._text.repetition_penalty
        draws.pad_multiplier[row] = self._text.pad_multiplier

    def said(self, text: int) -> None:
        """Takes the text id of the frame."""
        if text not in (PAD, EPAD):
            self._recent.append(text)


def penalized(
    logits: Float[np.ndarray, "V"], recent: Int[np.ndarray, "recent"], penalty: float, bonus: float
) -> Float32[np.ndarray, "V"]:
    """Returns text logits with the penalty on recent ids, and `bonus` (multiplier x temperature) on PAD."""
    logits = logits.astype(np.float32)
    ids = np.unique(recent[recent != NONE])
    values = logits[ids]
    logits[ids] = np.where(values >= 0, values / penalty, values * penalty)
    logits[PAD] += bonus
    return logits


def choose(
    logits: Float[np.ndarray, "vocabulary"], uniform: float, temperature: float, top_k: int
) -> int:
    """Returns the id at which the cumulative probability passes `uniform`, in order of the ids.

    Probabilities are softmax(logits / temperature) over the ids whose logit is not below the `top_k`-th
    largest; temperature 0 returns the most likely id.
    """
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float32) / np.float32(temperature)
    if 0 < top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -top_k)[-top_k]] = -np.inf
    cumulative = np.cumsum(np.exp(scaled - scaled.max()))
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
