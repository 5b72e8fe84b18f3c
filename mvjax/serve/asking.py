"""A typed question, as `mvjax serve` and `mvjax talk` put it to a model: eSpeak NG speaks it.

The digits world's model answers most such questions right, and few whose tokens are forced in its text stream
(docs/serving.md, "Typed questions").
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from mvjax import types
from mvjax.dialogues import espeak

MAX_CHARACTERS = 1000  # a minute and a half of speech


def spoken(text: str, voice: str) -> Float32[np.ndarray, "T 1920"]:
    """Returns a question as frames of the user's audio.

    Args:
      text: at most MAX_CHARACTERS.
      voice: of eSpeak NG: a language with an optional variant, such as "en-us+f2".

    Raises:
      ValueError: if the text is empty or too long, or the voice is unknown.
      ModuleNotFoundError: if a package is not installed, with the remedy.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"text: expected at most {MAX_CHARACTERS} characters, got {len(text)}")
    try:
        import sphn

        samples, _, rate = espeak.synthesize(text, espeak.Voice(voice))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a typed question needs {error.name!r}: pip install 'mvjax[serve]'", name=error.name
        ) from error
    audio = sphn.resample(samples[None].astype(np.float32) / 32768, rate, types.SAMPLE_RATE)[0]
    return np.pad(audio, (0, -len(audio) % types.FRAME_SAMPLES)).reshape(-1, types.FRAME_SAMPLES)
