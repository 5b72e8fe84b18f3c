"""Opens a Mimi file with the codec that has its sizes, which `codec.json` says if they are not the release's.

Rust runs the released sizes, without jax; the Flax codec runs others, such as the digits world's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mvjax.codec import interface, rusty
from mvjax.config import frozen
from mvjax.weights import file_names, stated


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
        stated.write(folder / file_names.CODEC_CONFIG, sizes)


def read_sizes(folder: Path) -> frozen.MimiConfig | None:
    """Returns the sizes in a folder's `codec.json`; None without one: those of the release.

    Raises:
      ValueError: naming the file and what is wrong with it.
    """
    path = folder / file_names.CODEC_CONFIG
    sizes = stated.read(path, frozen.MimiConfig())
    if sizes is not None and (low := _not_positive(sizes)):
        raise ValueError(f"{path}: expected positive numbers, got {', '.join(low)}; export again")
    return sizes


def _not_positive(sizes: frozen.MimiConfig) -> list[str]:
    values = dataclasses.asdict(sizes) | {"ratios": min(sizes.ratios, default=0)}
    return [f"{n}={v}" for n, v in values.items() if n != "context_has_self" and v < 1]
