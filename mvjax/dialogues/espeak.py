"""eSpeak NG (pip wheel `espeakng-loader`) through ctypes: text to samples and events, with no other package.

It is called in retrieval mode: it passes samples and events to a callback and opens no sound device. The
library has global state: calls are serialized by a lock; and as the phase of its oscillators carries over
from one utterance to the next, whatever is terminated, it is loaded anew for each (0.8 ms). Its noise (the
breath of some voices, such as en-us+f2) is seeded by the clock unless told otherwise. So the samples follow
from text and voice alone.
Source: espeak-ng/src/include/espeak-ng/speak_lib.h.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import dataclasses
import threading
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int16

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: retrieval, done when espeak_Synth returns
_PHONEME_EVENTS = 1  # espeakINITIALIZE_PHONEME_EVENTS
_UTF8 = 1  # espeakCHARS_UTF8
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
WORD, END, PHONEME = 1, 5, 7  # espeak_EVENT_TYPE
_NOISE_SEED = 1
_LOCK = threading.Lock()


# type, seconds, character of the text (from 1), its length, name of the phoneme
Event = tuple[int, float, int, int, str]


@dataclasses.dataclass(frozen=True)
class Voice:
    """One speaker: an eSpeak NG voice with its variant, and how it talks."""

    name: str  # for example "en-us+f2"
    rate: int = 175  # words per minute
    pitch: int = 50  # 0..99
    pitch_range: int = 50  # 0..99; 0 is a monotone


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def synthesize(text: str, voice: Voice) -> tuple[Int16[np.ndarray, " samples"], list[Event], int]:
    """Returns samples, events and the sample rate in hertz.

    Raises:
      ValueError: if the text is empty or eSpeak NG does not know the voice.
    """
    if not text.strip():
        raise ValueError("speak: expected text with at least one word, got an empty text")
    with _LOCK, _library() as (lib, rate):
        chunks, events = _synthesize(lib, text, voice)
    return np.concatenate(chunks) if chunks else np.zeros(1, np.int16), events, rate


@contextlib.contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Loads and initializes eSpeak NG, and unloads it; yields it with its sample rate in hertz."""
    import espeakng_loader

    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS)
    if rate <= 0:
        raise RuntimeError(
            f"eSpeak NG: expected a sample rate from espeak_Initialize, got {rate}; "
            f"reinstall espeakng-loader (data folder {data.decode()})"
        )
    try:
        yield lib, rate
    finally:
        lib.espeak_Terminate()
        _ctypes.dlclose(lib._handle)


def knows(voice: Voice) -> bool:
    """Whether there is a voice of this name."""
    with _LOCK, _library() as (lib, _):
        return lib.espeak_SetVoiceByName(voice.name.encode()) == 0


def _synthesize(lib: ctypes.CDLL, text: str, voice: Voice) -> tuple[list[np.ndarray], list[Event]]:
    if lib.espeak_SetVoiceByName(voice.name.encode()) != 0:
        raise ValueError(
            f"eSpeak NG: expected a known voice, got {voice.name!r}; "
            "a voice is a language with an optional variant, such as 'en-us+f2'"
        )
    values = {_RATE: voice.rate, _VOLUME: 100, _PITCH: voice.pitch, _RANGE: voice.pitch_range}
    for parameter, value in values.items():
        lib.espeak_SetParameter(parameter, value, 0)
    chunks: list[np.ndarray] = []
    events: list[Event] = []

    def receive(samples, count, event):
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while event[i].type != 0:
            e = event[i]
            name = e.id.string.decode("utf-8", "replace") if e.type == PHONEME else ""
            events.append((e.type, e.audio_position / 1000.0, e.text_position, e.length, name))
            i += 1
        return 0

    callback = _Callback(receive)
    lib.espeak_SetSynthCallback(callback)
    lib.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))
    encoded = text.encode()
    lib.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
    return chunks, events
