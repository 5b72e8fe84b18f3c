"""Speech in and out of one conversation: microphone audio to codes, a model's frames to audio and text."""

from __future__ import annotations

import codecs
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from mvjax import types
from mvjax.codec import interface as codec_interface
from mvjax.runtimes import interface, sampling

_SPACE = "▁"


class Said(NamedTuple):
    """What a frame says; the text is "" where no word begins or goes on."""

    pcm: Float32[np.ndarray, " samples"]
    text: str


class Voice:
    """Encodes what the user says and decodes what the model says, frame by frame.

    Args:
      stream: of one row, at its first frame.
      tokenizer: a SentencePieceProcessor.
      sizes: of the model.
    """

    def __init__(
        self, stream: codec_interface.CodecStream, tokenizer: Any, sizes: interface.Sizes
    ) -> None:
        self._stream, self._tokenizer, self._users = stream, tokenizer, sizes.codebooks_user
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def hear(self, pcm: Float32[np.ndarray, " samples"]) -> Int32[np.ndarray, "U"]:
        """Returns the codes of a frame of the user, 80 ms at 24 kHz.

        Raises:
          ValueError: for another number of samples.
        """
        if pcm.shape != (types.FRAME_SAMPLES,):
            raise ValueError(
                f"audio: expected a frame of {types.FRAME_SAMPLES} samples, got {list(pcm.shape)}"
            )
        return self._stream.encode(pcm[None])[0, : self._users, 0]

    def say(self, frame: interface.Frame) -> Said:
        """Returns the audio and the text of a frame; silence while the model has no frame complete."""
        text = self._text(frame.text_token)
        if frame.audio_codes is None:
            return Said(np.zeros(types.FRAME_SAMPLES, np.float32), text)
        codes = frame.audio_codes.astype(np.int32)
        return Said(self._stream.decode(codes[None, :, None])[0], text)

    def reset(self) -> None:
        """Goes back to the first frame of a conversation."""
        self._stream.reset()
        self._bytes.reset()

    def _text(self, token: int) -> str:
        if token in (sampling.PAD, sampling.EPAD) or self._tokenizer.is_control(token):
            return ""
        piece = self._tokenizer.id_to_piece(token)
        if self._tokenizer.is_byte(token):  # "<0xE2>": a character of several tokens
            return self._bytes.decode(bytes([int(piece[3:5], 16)]))
        return piece.replace(_SPACE, " ")
