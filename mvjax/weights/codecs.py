"""Opens a Mimi file with the codec that has its sizes, which `codec.json` says if they are not the release's.

Rust runs the released sizes, without jax; the Flax codec runs others, such as the digits world's.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mvjax.codec import interface, rusty
from mvjax.config import frozen
from mvjax.weights import file_names


def open_codec(
    path: Path, *, sizes: frozen.MimiConfig | None = None, minutes: float = 60.0
) -> interface.Codec:
    """Opens a Mimi file for streaming.

    Args:
      path: safetensors with the names of the released file.
      sizes: None: those of the release.
      minutes: how long a stream may last; the Flax codec's may last for ever.

    Raises:
      ValueError: if there is no such file; for other sizes than the release's, as `mimi.load_mimi`.
      ModuleNotFoundError: if a package is not installed, with the remedy.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a Mimi file (safetensors), found none; export again")
    config = frozen.MimiConfig() if sizes is None else sizes
    if not rusty.unreleased(config):
        return rusty.RustyCodec(path, config, minutes)
    try:
        from mvjax.weights import mimi
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: a codec of other sizes than the release's needs {error.name!r}:"
            " pip install 'mvjax[train]'",
            name=error.name,
        ) from error
    return mimi.open_codec(path, config)


def stated_sizes(config: frozen.MimiConfig) -> frozen.MimiConfig | None:
    """Returns what `codec.json` of a codec says; None where there is no need for one."""
    return config if rusty.unreleased(config) else None


def write_sizes(folder: Path, config: frozen.MimiConfig) -> None:
    """Writes `codec.json` into an export folder, if there is need for one."""
    if (sizes := stated_sizes(config)) is not None:
        text = json.dumps(dataclasses.asdict(sizes), indent=1)
        (folder / file_names.CODEC_CONFIG).write_text(text + "\n")


def read_sizes(folder: Path) -> frozen.MimiConfig | None:
    """Returns the sizes in a folder's `codec.json`; None without one: those of the release.

    Raises:
      ValueError: naming the file and what is wrong with it.
    """
    path = folder / file_names.CODEC_CONFIG
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}; export again") from error
    wanted = dataclasses.asdict(frozen.MimiConfig())
    fits = isinstance(found, dict) and found.keys() == wanted.keys()
    if not fits or any(not _fits(found[name], value) for name, value in wanted.items()):
        raise ValueError(
            f"{path}: expected {', '.join(wanted)}, each a positive integer, got {found!r:.200}; export again"
        )
    ratios = tuple(found.pop("ratios"))
    return frozen.MimiConfig(ratios=ratios, **found)


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has the type of the field's default; numbers are positive."""
    if isinstance(default, tuple):
        return isinstance(value, list) and bool(value) and all(_fits(x, 1) for x in value)
    return type(value) is type(default) and (isinstance(value, bool) or value > 0)
