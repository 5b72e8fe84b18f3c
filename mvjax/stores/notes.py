"""Small texts that the processes of a run leave for each other: files, or objects of a run on a store."""

from __future__ import annotations

from pathlib import Path

from mvjax.stores import objects, places


def write(path: Path, text: str) -> None:
    """Replaces a note; its folder is made."""
    if (url := places.url(path)) is not None:
        objects.write(url, text.encode())
        return
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def read(path: Path) -> str:
    """Returns a note; OSError if there is none."""
    if (url := places.url(path)) is not None:
        return objects.read(url).decode(errors="replace")
    return path.read_text(errors="replace")


def remove(path: Path) -> None:
    """Removes a note, if there is one."""
    if (url := places.url(path)) is not None:
        objects.remove([url])
    else:
        path.unlink(missing_ok=True)
