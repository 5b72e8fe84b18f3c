"""A store of audio codes by the hash of audio and settings, so that an interrupted encoding can resume."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import UInt16

from mvjax import files
from mvjax.data.records import record

_VERSION = b"mvjax codes 1"


class Codes(msgspec.Struct):
    """The codes of one dialogue, as `Record.codes` has them."""

    streams: int  # the assistant's codebooks and the user's
    seconds: float  # duration of the audio
    codes: bytes
    crc: int


class CodeStore:
    """A folder of codes; processes may share it, also over a network, since files are written atomically."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self, key: str) -> Codes | None:
        """Returns the codes of a key; None if there are none, or they are damaged."""
        try:
            codes = msgspec.msgpack.decode(self._path(key).read_bytes(), type=Codes)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return codes if zlib.crc32(codes.codes) == codes.crc else None

    def save(self, key: str, codes: UInt16[np.ndarray, "streams T"], seconds: float) -> None:
        """Stores codes under a key."""
        content = record.encode_codes(codes)
        entry = Codes(len(codes), seconds, content, zlib.crc32(content))
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, msgspec.msgpack.encode(entry), shared=True)

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / key[2:]


def key(audio: Path | np.ndarray, *settings: str) -> str:
    """The SHA-256 of an audio file (or samples) and all settings that its codes depend on."""
    digest = hashlib.sha256(_VERSION)
    for text in settings:
        digest.update(f"{len(text)} {text}".encode())
    if isinstance(audio, Path):
        digest.update(bytes.fromhex(files.file_hash(audio)))
    else:
        digest.update(hashlib.sha256(np.ascontiguousarray(audio).tobytes()).digest())
    return digest.hexdigest()
