"""Licenses of the frozen parts: what the model card beside each states, or its publisher is known to.

A card on the Hub begins with YAML: `license: cc-by-nc-4.0`, or `license: other` and `license_name`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import yaml

from mvjax import files
from mvjax.config import beside_moshi, schema

UNKNOWN = "not stated beside it: find it out before publishing"
_CARD = "README.md"
_FRONT = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
_PUBLISHERS = {  # {pattern of a location: license and language, as their cards state them}
    r"hf://kyutai/.*": ("cc-by-4.0", "en"),
    r"hf://nu-dialogue/j-moshi.*": ("cc-by-nc-4.0", "ja"),
    r"hf://nvidia/personaplex.*": ("NVIDIA Open Model License", "en"),
    r"hf://google/paligemma.*": ("gemma", "en"),
    r"hf://google/siglip.*": ("apache-2.0", "en"),
    r"package:mvjax\..*": ("as mvjax", "en"),
    # Kyutai's Mimi, wherever it lies
    r".*/[^/]*e351c8d8[^/]*\.safetensors": ("cc-by-4.0", "en"),
}
_PERSONAPLEX = "NVIDIA Open Model License"


def licenses(frozen: schema.FrozenFiles) -> dict[str, str]:
    """Returns {field of FrozenFiles: license} of each file that it names."""
    return {
        name: _license(location, moshi=name == "moshi")
        for name, location in dataclasses.asdict(frozen).items()
        if isinstance(location, str) and location
    }


def languages(moshi: str) -> list[str]:
    """Returns the languages that the card beside Moshi states; English if it states none."""
    known = _published(moshi)
    stated = known[1] if known else _front_matter(moshi).get("language") or "en"
    return [stated] if isinstance(stated, str) else [str(one) for one in stated]


def non_commercial(stated: Mapping[str, str]) -> list[str]:
    """Returns the parts whose license forbids commercial use."""
    return [name for name, text in stated.items() if re.search(r"\bnc\b", text.lower())]


def _license(location: str, *, moshi: bool) -> str:
    on_hub = location.startswith(files.HUB_PREFIX)  # where asking for a card may take a network
    front = {} if on_hub and _published(location) else _front_matter(location)
    name, link = front.get("license_name"), front.get("license_link")
    if stated := (name or front.get("license")):
        return f"{stated} ({link})" if link else str(stated)
    if known := _published(location):
        return known[0]
    return _PERSONAPLEX if moshi and _is_personaplex(location) else UNKNOWN


def _published(location: str) -> tuple[str, str] | None:
    known = (one for pattern, one in _PUBLISHERS.items() if re.fullmatch(pattern, location))
    return next(known, None)


def _is_personaplex(moshi: str) -> bool:
    try:
        keys = beside_moshi.read(moshi)
    except (FileNotFoundError, ValueError):
        return False
    return keys is not None and not keys.stated


def _front_matter(location: str) -> dict[str, Any]:
    """Returns the YAML of the card beside a file; empty where there is none that can be read."""
    try:
        card = files.find(files.beside(location, _CARD))
        front = _FRONT.match(card.read_text(errors="replace")) if card else None
        content = yaml.safe_load(front[1]) if front else None
    except (FileNotFoundError, ModuleNotFoundError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
