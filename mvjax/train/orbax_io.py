"""Reads one orbax item, and keeps orbax's own log out of the way of our messages."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


def restore(folder: Path, abstract: Any) -> Any:
    """Returns the tree of arrays in the folder of an item, placed as `abstract` (ShapeDtypeStructs) says.

    Raises:
      ValueError: if it holds other paths or shapes.
    """
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), abstract)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences orbax, which logs each error several times; what it raises is reported once, by us."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
