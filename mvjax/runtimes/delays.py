"""The token state machine of a conversation: which ids enter at each frame, and which leave.

Reference section 5.2, the Rust/MLX column, which is the training alignment. At call s stream k
(delay d) enters as its code of frame s - 1 - d, or as its initial id before the start:

    call s   text   semantic   acoustic (d = 1)    the depformer's acoustic inputs
    0        V      C          C                   C instead of the codes just chosen (section 5.3)
    1        w_0    a_0, u_0   C                   chosen
    2        w_1    a_1, u_1   a_0, u_0            chosen
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mvjax import types


@dataclasses.dataclass(frozen=True)
class StepOut:
    """What a runtime returns for one frame.

    Attributes:
      text_token: id chosen for this frame.
      audio_codes: [Q], the latest frame that is complete, for the codec; None in the first frames.
      text_logits: float32 [V].
      audio_logits: float32 [Q, C].
      gate: mean gate opening over channels and the last ten layers; 0 without an image.
      audio_tokens: [Q], chosen in this call; level q belongs to frame s - delays[q].
      gates: float32 [L], the mean of each layer.
      hidden: float32 [L, D], the residual stream after each layer.
    """

    text_token: int
    audio_codes: np.ndarray | None
    text_logits: np.ndarray
    audio_logits: np.ndarray
    gate: float
    audio_tokens: np.ndarray
    gates: np.ndarray
    hidden: np.ndarray


class Timeline:
    """Keeps the codes of the last frames.

    Args:
      delays: frames, one per stream: text, the assistant's, the user's.
      codebooks_out: Q.
      text_vocab: V, the initial text id.
      audio_vocab: C, the initial audio id.
    """

    def __init__(
        self, delays: Sequence[int], *, codebooks_out: int, text_vocab: int, audio_vocab: int
    ) -> None:
        self.delays = np.asarray(delays)
        self.codebooks_out = codebooks_out
        self.initial = np.full(len(delays), audio_vocab)
        self.initial[0] = text_vocab
        self.reset()

    def reset(self) -> None:
        """Starts a new conversation."""
        self.step = 0
        # Slot f % slots holds frame f; one more than the oldest frame still needed.
        self._frames = np.full((int(self.delays.max()) + 2, len(self.delays)), types.UNGENERATED)

    def column(self) -> np.ndarray:
        """Returns the ids [K] that enter the backbone at this call."""
        frames = self.step - 1 - self.delays
        ids = self._frames[frames % len(self._frames), np.arange(len(self.delays))]
        ids = np.where(frames < 0, self.initial, ids)
        assert types.UNGENERATED not in ids, f"frame {self.step}: a stream was never pushed: {ids}"
        return ids

    def told(self) -> np.ndarray:
        """Returns what each level tells the next [Q]; UNGENERATED: the code it chose."""
        assistant = slice(1, 1 + self.codebooks_out)
        early = self.step < self.delays[assistant]
        return np.where(early, self.initial[assistant], types.UNGENERATED)

    def push(self, text: int, audio: np.ndarray, user: np.ndarray) -> np.ndarray | None:
        """Records one call and moves to the next.

        Args:
          text: id chosen in this call.
          audio: [Q], chosen in this call; level q is written to frame s - delays[q].
          user: codes of the user's frame s, undelayed; -1 where absent.

        Returns:
          The codes [Q] of the latest frame that all levels have reached, or None.
        """
        s, slots = self.step, len(self._frames)
        self._frames[s % slots] = types.UNGENERATED
        self._frames[s % slots, 0] = text
        self._frames[s % slots, 1 + self.codebooks_out :] = user
        for q, code in enumerate(audio):
            frame = s - self.delays[1 + q]
            if frame >= 0:
                self._frames[frame % slots, 1 + q] = code
        self.step += 1
        complete = s - int(self.delays[1 : 1 + self.codebooks_out].max())
        if complete < 0:
            return None
        return self._frames[complete % slots, 1 : 1 + self.codebooks_out].copy()


class Sampler:
    """Picks ids from logits: the largest, or top-k at a temperature.

    Args:
      temperature: 0 is greedy.
      top_k: ids to draw from; 0: all.
      seed: of the draws.
    """

    def __init__(self, *, temperature: float = 0.0, top_k: int = 0, seed: int = 0) -> None:
        self.temperature, self.top_k = temperature, top_k
        self.random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        """Returns one id."""
        if self.temperature <= 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self.temperature
        if 0 < self.top_k < len(scaled):
            scaled[scaled < np.partition(scaled, -self.top_k)[-self.top_k]] = -np.inf
        weights = np.exp(scaled - scaled.max())
        return int(self.random.choice(len(weights), p=weights / weights.sum()))
