"""Turns a file location into a local path: `package:NAME/FILE` (shipped) or a plain path."""

from __future__ import annotations

import importlib.resources
import importlib.util
from pathlib import Path

PACKAGE_PREFIX = "package:"


def resolve(location: str | Path) -> Path:
    """Returns the existing file behind a location.

    Args:
      location: `package:mvjax.tiny/assets/moshi.safetensors`, or a path (`~` is expanded).

    Raises:
      ValueError: if the location has no package or file part, or names a folder.
      FileNotFoundError: naming the location, where it was looked for, and what lies there instead.
    """
    text = str(location)
    shipped = text.startswith(PACKAGE_PREFIX)
    path = _in_package(text) if shipped else Path(text).expanduser()
    if path.is_dir():
        raise ValueError(f"{text}: expected a file, got the folder {path}; name a file in it")
    if not path.is_file():
        parent = path.parent
        near = sorted(p.name for p in parent.iterdir())[:20] if parent.is_dir() else None
        fact = (
            f"{parent} holds {near}" if near is not None else f"the folder {parent} does not exist"
        )
        raise FileNotFoundError(f"{text}: no such file; {fact}. Check the path in `frozen`.")
    return path


def _in_package(text: str) -> Path:
    package, _, name = text.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package or not name:
        raise ValueError(f"{text}: expected package:NAME/FILE, such as package:mvjax.tiny/assets/x")
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise FileNotFoundError(f"{text}: no package {package!r} is installed; check the name")
    return Path(str(importlib.resources.files(package))) / name
