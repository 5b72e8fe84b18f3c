"""A record: one dialogue, its image and codes; its stored form, and what makes it valid."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from jaxtyping import UInt16

from mvjax import types
from mvjax.config import schema

LIMITS = schema.LimitsConfig()


class Turn(msgspec.Struct, frozen=True):
    """One utterance; the speaker is "user" or "assistant"."""

    speaker: str
    text: str


class Word(msgspec.Struct, frozen=True, array_like=True):
    """One spoken word, in seconds from the record's first sample."""

    text: str
    start: float
    end: float


class DialogueFields(msgspec.Struct, frozen=True):
    """What a record holds apart from its image; text only, it has no codes, codebooks and seconds."""

    id: str  # unique within its dataset
    kinds: tuple[str, ...]  # of questions, for statistics
    turns: tuple[Turn, ...]  # the transcript of both sides
    facts: dict[str, str | int] | None = None  # what the image shows, where that is known
    words: tuple[Word, ...] | None = None  # the assistant's; None: the text stream is all -1
    user_words: tuple[Word, ...] | None = None  # where known, for `mvjax data show`; not trained on
    codes: bytes = b""  # little-endian uint16 [2Q, T]: the assistant's codebooks, then the user's
    codebooks: int = 0  # 2Q
    seconds: float = 0.0  # duration of the speech

    @property
    def frames(self) -> int:
        """T; 0 if the dialogue is text only."""
        return len(self.codes) // (2 * self.codebooks) if self.codebooks else 0

    def array(self) -> UInt16[np.ndarray, "streams T"]:
        """The codes [2Q, T]; [0, 0] if the dialogue is text only."""
        flat = np.frombuffer(self.codes, "<u2").astype(np.uint16)
        return flat.reshape(self.codebooks, -1) if self.codebooks else flat.reshape(0, 0)


class Record(DialogueFields, frozen=True):
    """One dialogue; `image` is an encoded file (PNG, JPEG, ...) or None."""

    image: bytes | None = None


class StoredRecord(DialogueFields, frozen=True, forbid_unknown_fields=True):
    """A record as stored; `image` is the number of its image in the dataset, or None."""

    image: int | None = None


def encode_codes(codes: np.ndarray) -> bytes:
    """Packs codes [2Q, T] for `Record.codes`."""
    return np.ascontiguousarray(codes, dtype="<u2").tobytes()


def encode(record: Record, image: int | None) -> bytes:
    """The stored form of a record, with the number of its image; ValueError if it cannot be written."""
    try:
        return msgspec.msgpack.encode(msgspec.structs.asdict(record) | {"image": image})
    except (TypeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"expected a Record, cannot write it: {error}") from error


def decode(entry: bytes, limits: schema.LimitsConfig = LIMITS) -> StoredRecord:
    """Reads the stored form; ValueError if it is too large or has other types (values: `problems`)."""
    if len(entry) > limits.record_bytes:
        raise ValueError(
            f"expected at most {limits.record_bytes} bytes (limits.record_bytes), got {len(entry)}"
        )
    try:
        return msgspec.msgpack.decode(entry, type=StoredRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"expected a Record, cannot read it: {error}") from error


def problems(record: DialogueFields, limits: schema.LimitsConfig = LIMITS) -> list[str]:
    """What is wrong with a record apart from its image."""
    wrong = []
    if not record.id:
        wrong.append("id: expected a name, got an empty one")
    if not record.turns:
        wrong.append("turns: expected at least one, got none")
    for n, turn in enumerate(record.turns):
        if turn.speaker not in ("user", "assistant") or not turn.text.strip():
            wrong.append(f"turn {n}: expected words of user or assistant, got {turn}")
    frames = record.seconds / types.FRAME_SECONDS
    if not math.isfinite(frames) or not 0 <= record.seconds <= limits.audio_seconds:
        limit = f"of at most {limits.audio_seconds:g} s (limits.audio_seconds)"
        return [*wrong, f"seconds: expected a duration {limit}, got {record.seconds}"]
    expected = 2 * record.codebooks * math.ceil(round(frames, 3))
    if record.codebooks < 0 or record.codebooks % 2 or len(record.codes) != expected:
        wrong.append(
            f"codes: expected {expected} bytes for {record.codebooks} (even) codebooks and "
            f"{record.seconds} s, got {len(record.codes)}"
        )
    for side, words in (("word", record.words), ("user word", record.user_words)):
        for n, word in enumerate(words or ()):
            if not 0 <= word.start <= word.end <= record.seconds + types.FRAME_SECONDS:
                wrong.append(f"{side} {n}: expected times within {record.seconds} s, got {word}")
    return wrong
