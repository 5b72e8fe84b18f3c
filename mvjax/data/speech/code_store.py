"""A store of audio codes by the hash of audio and settings, so that an interrupted encoding can resume."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import UInt16

from mvjax import files

_VERSION = b"mvjax codes 1"


@dataclasses.dataclass(frozen=True)
class Codes:
    """The codes of one dialogue.

    Attributes:
      array: the assistant's codebooks, then the user's.
      seconds: duration of the audio.
    """

    array: UInt16[np.ndarray, "streams T"]
    seconds: float


class _Entry(msgspec.Struct):
    streams: int
    seconds: float
    codes: bytes  # little-endian uint16
    crc: int


class CodeStore:
    """A folder of codes; processes may share it, also over a network, since files are written atomically."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self, key: str) -> Codes | None:
        """Returns the codes of a key; None if there are none, or they are damaged."""
        try:
            entry = msgspec.msgpack.decode(self._path(key).read_bytes(), type=_Entry)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        if zlib.crc32(entry.codes) != entry.crc:
            return None
        array = np.frombuffer(entry.codes, "<u2").astype(np.uint16).reshape(entry.streams, -1)
        return Codes(array, entry.seconds)

    def save(self, key: str, codes: Codes) -> None:
        """Stores codes under a key."""
        content = np.ascontiguousarray(codes.array, "<u2").tobytes()
        entry = _Entry(len(codes.array), codes.seconds, content, zlib.crc32(content))
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, msgspec.msgpack.encode(entry), shared=True)

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / key[2:]


def key(audio: Path | np.ndarray, *settings: str) -> str:
    """Returns the SHA-256 of an audio file (or samples) and all settings that its codes depend on."""
    digest = hashlib.sha256(_VERSION)
    for text in settings:
        digest.update(f"{len(text)} {text}".encode())
    if isinstance(audio, Path):
        digest.update(bytes.fromhex(files.file_hash(audio)))
    else:
        digest.update(hashlib.sha256(np.ascontiguousarray(audio).tobytes()).digest())
    return digest.hexdigest()
