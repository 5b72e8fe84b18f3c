"""Delays of a conversation's streams: which ids enter the backbone at each call, and which frame is complete.

Reference section 5.2, the Rust/MLX column, which is the training alignment. At call s stream k
(delay d) enters as its code of frame s - 1 - d, or as its initial id before the start:

    call s   text   semantic   acoustic (d = 1)    acoustic levels of the depth transformer
    0        V      C          C                   teacher-forced with C (section 5.3)
    1        w_0    a_0, u_0   C                   sampled
    2        w_1    a_1, u_1   a_0, u_0            sampled
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from mvjax import types
from mvjax.runtimes import interface


class DelayBuffer:
    """The ids of the last frames, as many as the delays need; each call is `column`, then `push`.

    Args:
      first_step_forcing: whether delayed levels are forced to the initial id before their first frame; else
        they are sampled, and dropped.
      user_early: whether call s takes the user's frame s, not s - 1, which loses frame 0 (section 5.2).
    """

    def __init__(
        self, sizes: interface.Sizes, *, first_step_forcing: bool = True, user_early: bool = False
    ) -> None:
        self.delays = np.asarray(sizes.delays)
        self.initial = np.full(len(sizes.delays), sizes.audio_vocab)
        self.initial[0] = sizes.text_vocab
        self._assistant = slice(1, 1 + sizes.codebooks_out)
        self._user = slice(1 + sizes.codebooks_out, None)
        self._first_step_forcing, self._user_early = first_step_forcing, user_early
        self.reset()

    def reset(self) -> None:
        """Starts a new conversation."""
        self.step = 0
        # Slot f % slots holds frame f, from the oldest one still needed to the current one.
        self._frames = np.full((int(self.delays.max()) + 2, len(self.delays)), types.UNGENERATED)

    def skip(self, frames: int) -> None:
        """Goes on as if so many frames had passed, in which every id was 0; to measure latency."""
        self.step += frames
        if frames:
            self._frames[:] = 0

    def column(self, user: Int[np.ndarray, "U"]) -> Int[np.ndarray, "K"]:
        """Returns the ids that enter the backbone, given the user's frame s, undelayed; -1 where absent."""
        slots = len(self._frames)
        self._frames[self.step % slots] = types.UNGENERATED
        self._frames[self.step % slots, self._user] = user
        frames = self.step - 1 - self.delays
        early = frames < 0
        if self._user_early:
            frames[self._user] += 1
        ids = self._frames[frames % slots, np.arange(len(self.delays))]
        ids = np.where(early, self.initial, ids)
        assert types.UNGENERATED not in ids, f"frame {self.step}: a stream was never pushed: {ids}"
        return ids

    def forced_audio(self, audio: Int[np.ndarray, "Q"] | None) -> Int[np.ndarray, "Q"]:
        """Returns the codes that the depth transformer is teacher-forced with; UNGENERATED: it samples.

        Args:
          audio: codes that the caller forces, likewise; None: none.
        """
        initial = self.initial[self._assistant]
        forced = np.full(len(initial), types.UNGENERATED if audio is None else audio)
        early = self._first_step_forcing & (self.step < self.delays[self._assistant])
        return np.where(early, initial, forced)

    def push(self, text: int, audio: Int[np.ndarray, "Q"]) -> Int[np.ndarray, "Q"] | None:
        """Records what was sampled or forced in this call, and moves to the next.

        The text is of frame s; level q of the audio of frame s - delays[1 + q].

        Returns:
          The codes of the latest frame that all levels have reached, or None.
        """
        s, slots = self.step, len(self._frames)
        self._frames[s % slots, 0] = text
        for q, code in enumerate(audio):
            frame = s - self.delays[1 + q]
            if frame >= 0:
                self._frames[frame % slots, 1 + q] = code
        self.step += 1
        complete = s - int(self.delays[self._assistant].max())
        if complete < 0:
            return None
        return self._frames[complete % slots, self._assistant].copy()
