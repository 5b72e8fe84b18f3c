"""Output that cannot end a run: a full disk, a closed pipe and a terminal that is gone are no errors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """While this lasts, what standard output and standard error cannot take is dropped."""
    earlier = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Dropping(stream) for stream in earlier)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = earlier


class _Dropping:
    """A text stream that drops what it cannot write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
