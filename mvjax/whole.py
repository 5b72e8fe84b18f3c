"""Writes a small file whole or not at all: a reader never sees half of it."""

from __future__ import annotations

from pathlib import Path

DRAFT = ".part"  # behind the name, until the content is complete


def write(path: Path, content: bytes) -> None:
    """Replaces the file; its folder must exist, and one process writes it at a time."""
    draft = path.with_name(path.name + DRAFT)
    draft.write_bytes(content)
    draft.replace(path)
