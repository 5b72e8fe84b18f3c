"""JSON files of an export folder that each hold one flat dataclass: written, read, checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from mvjax import messages

Stated = TypeVar("Stated")


def write(path: Path, value: Any) -> None:
    """Writes the fields of a dataclass."""
    path.write_text(json.dumps(dataclasses.asdict(value), indent=1) + "\n")


def read(path: Path, default: Stated) -> Stated | None:
    """Returns what `write` wrote, of the class of `default`; None without the file.

    Raises:
      ValueError: naming the file, for other fields or values of other types than the default's.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}; export again") from error
    assert dataclasses.is_dataclass(default) and not isinstance(default, type)
    wanted = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    if not isinstance(found, dict) or found.keys() != wanted.keys():
        raise ValueError(
            f"{path}: expected the keys {', '.join(wanted)}, got {found!r:.200}; export again"
        )
    wrong = [
        f"{name}: expected such as {wanted[name]!r}, got {value!r:.80}"
        for name, value in found.items()
        if not _is_like(value, wanted[name])
    ]
    if wrong:
        raise ValueError(f"{path}: {messages.names(wrong, between='; ')}; export again")
    values = {name: type(wanted[name])(x) for name, x in found.items()}  # tuple, float
    try:
        return type(default)(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; export again") from error


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has the type of a field's default; a whole number may stand for a fraction."""
    if isinstance(default, tuple):
        return isinstance(value, list) and all(_is_like(x, default[0]) for x in value)
    return type(value) is type(default) or (type(value), type(default)) == (int, float)
