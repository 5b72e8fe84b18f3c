"""Compares the files beside an export's weights with what they should be: config files, codec, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mvjax import files
from mvjax.config import schema
from mvjax.export import runtime_configs, targets
from mvjax.weights import codecs, file_names, stated


def differing(
    config: schema.Config,
    folder: Path,
    target: targets.Target,
    quantization: targets.Quantization | None,
) -> list[str]:
    """Returns the keys of config files that are not as they should be; codec, tokenizer if not the run's."""
    apart = []
    for name, content in runtime_configs.contents(config.model, target, quantization).items():
        found = _read(folder / name)
        apart += (
            [f"{name}: {found}"] if isinstance(found, str) else _keys_apart(name, found, content)
        )
    said = {
        file_names.CODEC_CONFIG: (
            codecs.stated_sizes(config.codec), lambda: codecs.read_sizes(folder)
        ),
        file_names.TALK: (config.talk, lambda: stated.read(folder / file_names.TALK, config.talk)),
    }  # fmt: skip
    for name, source in (
        (file_names.CODEC, config.frozen.codec),
        (file_names.TOKENIZER, config.frozen.tokenizer),
    ):
        said[name] = files.file_hash(files.resolve(source)), _hash_of(folder / name)
    return apart + [f"{name}: {why}" for name, pair in said.items() if (why := _why(*pair))]


def _read(path: Path) -> dict[str, Any] | str:
    """What a config file says, flat; or what is wrong with it."""
    try:
        text = path.read_text()
        found = yaml.safe_load(text) if path.name == file_names.TORCH_CONFIG else json.loads(text)
    except FileNotFoundError:
        return "is missing"
    except (ValueError, yaml.YAMLError):
        return "is damaged"
    return _flat(found) if isinstance(found, dict) else "is damaged"


def _keys_apart(name: str, found: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    wanted = _flat(content)
    return [
        f"{name}: {key}: expected {wanted.get(key, 'no such key')!r},"
        f" found {found.get(key, 'no such key')!r}"
        for key in sorted(wanted.keys() | found.keys())
        if key not in wanted or key not in found or wanted[key] != found[key]
    ]


def _hash_of(path: Path) -> Callable[[], str | None]:
    return lambda: files.file_hash(path) if path.is_file() else None


def _why(wanted: Any, read: Callable[[], Any]) -> str:
    """Why a file is not the run's; empty if it is. `read` returns None if there is none."""
    try:
        found = read()
    except ValueError:
        return "is damaged"
    if found == wanted:
        return ""
    return "is missing" if found is None else "is not the run's"


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {path with dots: value}."""
    flat = {}
    for key, value in content.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
