"""Compares the files beside an export's weights with what they should be: config files, codec, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
        text = (folder / name).read_text()
        as_yaml = name == file_names.TORCH_CONFIG
        found = _flat(yaml.safe_load(text) if as_yaml else json.loads(text))
        wanted = _flat(content)
        apart += [
            f"{name}: {key}: expected {wanted.get(key, 'no such key')!r},"
            f" found {found.get(key, 'no such key')!r}"
            for key in sorted(wanted.keys() | found.keys())
            if key not in wanted or key not in found or wanted[key] != found[key]
        ]
    if codecs.read_sizes(folder) != codecs.stated_sizes(config.codec):
        apart.append(f"{file_names.CODEC_CONFIG}: is not the run's")
    if stated.read(folder / file_names.TALK, config.talk) != config.talk:
        apart.append(f"{file_names.TALK}: is not the run's")
    sources = {file_names.CODEC: config.frozen.codec, file_names.TOKENIZER: config.frozen.tokenizer}
    return apart + [
        f"{name}: is not the run's"
        for name, source in sources.items()
        if files.file_hash(folder / name) != files.file_hash(files.resolve(source))
    ]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {path with dots: value}."""
    flat = {}
    for key, value in content.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
