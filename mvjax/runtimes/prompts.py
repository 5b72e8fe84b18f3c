"""Prompts: forced frames before a conversation, as PersonaPlex takes its voice and its role.

    voice = codec.encode(wav)[0]                                  # some seconds of the voice, at -24 LUFS
    role = tokenizer.encode(prompts.system("You are a guide in a museum."))
    session = prompts.Prompted(model.session(image), model.sizes, prompts.personaplex(voice, role))
    frame = session.step(user_codes)                              # the user's first frame

PersonaPlex's packaged voices (`voices/*.pt`) are pickles of embeddings, which are never opened: encode a
recording instead.
Source: NVIDIA/personaplex, moshi/moshi/models/lm.py, `LMGen.step_system_prompts`, and moshi/moshi/server.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mvjax import types
from mvjax.runtimes import interface

PAD = 3  # text of a frame without a new word
# a frame of Mimi codes each: silence (the assistant's), and a 440 Hz tone (the user's, all through a prompt)
SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
TONE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
PAUSE = 6  # frames of silence after the voice and after the role: half a second


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Frames to force, undelayed: one text token and the codes of both speakers for each."""

    text: Int[np.ndarray, "T"]
    assistant: Int[np.ndarray, "Q T"]
    user: Int[np.ndarray, "U T"]


def system(role: str) -> str:
    """Returns a role as PersonaPlex was trained to read it, between two tags."""
    role = role.strip()
    tagged = role.startswith("<system>") and role.endswith("<system>")
    return role if tagged else f"<system> {role} <system>"


def personaplex(
    voice: Int[np.ndarray, "Q T"] | None,
    role: Sequence[int],
    *,
    silence: Sequence[int] = SILENCE,
    tone: Sequence[int] = TONE,
) -> Prompt:
    """Returns the voice, a pause, the role (a token a frame) and a pause, without the first frame.

    NVIDIA's runtime loses that frame: its first call only fills the cache.

    Args:
      voice: codes of a recording; None: the model's own choice.
      role: ids of `system(...)`; empty: none.
      silence: codes of a silent frame.
      tone: codes of the user's frames.
    """
    codes = np.array(silence)[:, None]
    heard = codes[:, :0] if voice is None else voice
    after = 2 * PAUSE + len(role)
    assistant = np.concatenate([heard, np.repeat(codes, after, axis=1)], axis=1)
    text = [PAD] * (heard.shape[1] + PAUSE) + list(role) + [PAD] * PAUSE
    user = np.repeat(np.array(tone)[:, None], len(text), axis=1)
    return Prompt(np.array(text)[1:], assistant[:, 1:], user[:, 1:])


class Prompted:
    """A session (`interface.Session`) whose conversation begins after a prompt.

    Its image is the session's: shown from the start, it is seen through the prompt.

    Args:
      session: a new one.
      sizes: of its model.
      prompt: played now, and again by `reset`.

    Raises:
      ValueError: if the prompt has other streams than the model.
    """

    def __init__(self, session: interface.Session, sizes: interface.Sizes, prompt: Prompt) -> None:
        streams = (len(prompt.assistant), len(prompt.user))
        if streams != (sizes.codebooks_out, sizes.codebooks_user):
            raise ValueError(
                f"prompt: expected {sizes.codebooks_out} and {sizes.codebooks_user} codebooks of"
                f" assistant and user, got {streams[0]} and {streams[1]}; encode it for this model"
            )
        self._session, self._prompt = session, prompt
        self._delays = np.array(sizes.delays[1 : 1 + sizes.codebooks_out])
        self.prompt_frames = self._play()

    def show(self, image: Any | None) -> None:
        """As `interface.Session.show`."""
        self._session.show(image)

    def step(
        self,
        user_codes: Int[np.ndarray, "U"],
        *,
        text: int | None = None,
        audio: Int[np.ndarray, "Q"] | None = None,
    ) -> interface.Frame:
        """As `interface.Session.step`; delayed codes of the prompt's last frames are still forced."""
        late = self._audio()
        if audio is not None:
            late = np.where(late == types.UNGENERATED, audio, late)
        self._step += 1
        return self._session.step(user_codes, text=text, audio=late)

    def reset(self) -> None:
        """As `interface.Session.reset`, and plays the prompt."""
        self._session.reset()
        self.prompt_frames = self._play()

    def _play(self) -> list[interface.Frame]:
        self._step = 0
        frames = zip(self._prompt.user.T, self._prompt.text, strict=True)
        return [self.step(user, text=int(text)) for user, text in frames]

    def _audio(self) -> Int[np.ndarray, "Q"]:
        """The prompt's codes that the levels of this call belong to; UNGENERATED past its ends."""
        frames, levels = self._step - self._delays, np.arange(len(self._delays))
        inside = (frames >= 0) & (frames < len(self._prompt.text))
        codes = self._prompt.assistant[levels, np.where(inside, frames, 0)]
        return np.where(inside, codes, types.UNGENERATED)
