"""Writes a small file whole or not at all: a reader never sees half of it."""

from __future__ import annotations

import os
from pathlib import Path

DRAFT = ".part"  # behind the name, until the content is complete


def write(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Replaces the file; its folder must exist.

    Args:
      path: to write.
      content: all of it.
      shared: several processes may write it at once, all the same.
    """
    own = f".{os.getpid()}" if shared else ""
    draft = path.with_name(f"{path.name}{own}{DRAFT}")
    draft.write_bytes(content)
    draft.replace(path)
