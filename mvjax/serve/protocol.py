"""The wire: binary WebSocket messages whose first byte is their kind, parsed into what they mean.

Kinds 0 to 8 and 10 are upstream's (reference section 5.5); 9 is ours, a request of our page in JSON.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from typing import Any

from mvjax.serve import limits as limits_lib

COLORS = 10  # gate activation as a color: 0 to 10
_GATE_LOW, _GATE_SPAN = 0.005, 0.016


class Kind(enum.IntEnum):
    """The first byte of a message."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6
    COLORED_TEXT = 7
    IMAGE = 8
    REQUEST = 9
    RATING = 10


HANDSHAKE, PING = bytes([Kind.HANDSHAKE]), bytes([Kind.PING])
_NESTED = 100  # brackets of a request; a thousand would be too deep for Python
_RESTART = 3  # the one control byte that asks for something


@dataclasses.dataclass(frozen=True)
class Audio:
    """Audio of the user, in the form of the connection's transport."""

    data: bytes


@dataclasses.dataclass(frozen=True)
class Image:
    """An image file to be seen from now on."""

    data: bytes


@dataclasses.dataclass(frozen=True)
class Typed:
    """A typed question."""

    text: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """Other sampling from the next frame on; names as in the query."""

    values: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Played:
    """The client plays the frame that answers this moment of its microphone's audio, in seconds."""

    mic_time: float


@dataclasses.dataclass(frozen=True)
class Rating:
    """Of the conversation, 1 to 5."""

    stars: int


class Simple(enum.Enum):
    """Messages without content."""

    STOP = "stop"
    NO_IMAGE = "no_image"
    RESTART = "restart"
    NOTHING = "nothing"  # asks for nothing


Message = Audio | Image | Typed | Settings | Played | Rating | Simple


def parse(data: bytes, limits: limits_lib.Limits) -> Message:
    """Returns what a client's message means.

    Raises:
      limits.BrokenLimit: if it is none, or too large.
    """
    if not data:
        raise limits_lib.BrokenLimit("message: expected a byte for its kind, got nothing")
    kind, rest = data[0], data[1:]
    if kind == Kind.AUDIO:
        _check_size("audio message", rest, limits.audio_bytes)
        return Audio(rest)
    if kind == Kind.IMAGE:
        return Image(rest)
    if kind == Kind.REQUEST:
        _check_size("request", rest, limits.request_bytes)
        return _request(rest)
    if kind == Kind.CONTROL:
        return Simple.RESTART if rest == bytes([_RESTART]) else Simple.NOTHING
    if kind == Kind.RATING and len(rest) == 1 and 1 <= rest[0] <= 5:
        return Rating(rest[0])
    if kind in (Kind.HANDSHAKE, Kind.PING):
        return Simple.NOTHING
    raise limits_lib.BrokenLimit(
        f"message of kind {kind}, {len(data)} bytes: expected one of 0 (handshake), 1 (audio), 3"
        " (control), 6 (ping), 8 (image), 9 (request) or 10 (a rating, 1 to 5)"
    )


def color(gate: float) -> int:
    """Returns the color of a gate activation, 0 to 10."""
    return round(min(max((gate - _GATE_LOW) / _GATE_SPAN, 0.0), 1.0) * COLORS)


def audio(data: bytes) -> bytes:
    """Returns an audio message."""
    return bytes([Kind.AUDIO]) + data


def colored_text(text: str, gate: float) -> bytes:
    """Returns a message of text in the color of the gate."""
    return bytes([Kind.COLORED_TEXT, color(gate)]) + text.encode(errors="replace")


def metadata(**values: Any) -> bytes:
    """Returns a message of JSON."""
    return bytes([Kind.METADATA]) + json.dumps(values).encode()


def error(text: str) -> bytes:
    """Returns a message that says what went wrong."""
    return bytes([Kind.ERROR]) + text.encode(errors="replace")


def reason(text: str) -> bytes:
    """Returns the reason of a closed socket, which may have 123 bytes, whole characters of UTF-8."""
    return text.encode(errors="replace")[:120].decode(errors="ignore").encode()


def _check_size(what: str, data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise limits_lib.BrokenLimit(f"{what}: at most {limit} bytes, got {len(data)}")


def _request(data: bytes) -> Message:
    if data.count(b"[") + data.count(b"{") > _NESTED:
        raise limits_lib.BrokenLimit(f"request: at most {_NESTED} brackets")
    try:
        values = json.loads(data)
    except ValueError as error:
        raise limits_lib.BrokenLimit(f"request: not JSON: {error}") from None
    name = values.get("request") if isinstance(values, dict) else None
    if name in ("stop", "no_image", "restart"):
        return Simple(name)
    if name == "text" and isinstance(text := values.get("text"), str):
        return Typed(text)
    numbers = {k: v for k, v in values.items() if _is_number(v)} if name is not None else {}
    if name == "played" and "mic_time" in numbers:
        return Played(float(numbers["mic_time"]))
    if name == "settings" and len(numbers) == len(values) - 1:
        return Settings({k: str(v) for k, v in numbers.items()})
    raise limits_lib.BrokenLimit(
        "request: expected text (with a text), stop, no_image, restart, settings (with numbers) or played"
        f" (with a mic_time), got {data[:80]!r}"
    )


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
