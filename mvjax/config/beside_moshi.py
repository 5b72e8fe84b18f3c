"""What the files beside `frozen.moshi` say of it: sizes, and the names of codec, tokenizer and LoRA.

A field of the model whose value is the default of `schema.ModelConfig` is unsaid, and follows the file. A
field that says something else must agree with it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from mvjax import files, messages
from mvjax.config import moshi_keys, schema

_LOG = logging.getLogger(__name__)
_CONFIGS = ("config.json", "moshi_lm_kwargs.json")  # Kyutai's; nu-dialogue/moshi-finetune's
_UNSAID = schema.ModelConfig()


def follow(config: schema.Config, *, said: Sequence[str] = ()) -> schema.Config:
    """Returns the config with what it leaves unsaid: sizes, and the files that frozen.moshi's config names.

    Args:
      config: of a run.
      said: paths of fields that are said, even if their value is the default.

    Raises:
      ValueError: as `read`, or naming every key that contradicts the config.
    """
    frozen = config.frozen
    if not files.may_exist(frozen.moshi):  # only shapes are wanted, or loading will say so
        return config
    try:
        keys = read(frozen.moshi)
    except (FileNotFoundError, ModuleNotFoundError) as error:  # of the hub: loading will ask again
        _LOG.warning("%s; going on with the sizes of the experiment", error)
        return config
    usual = {"codec": moshi_keys.CODEC, "tokenizer": moshi_keys.TOKENIZER}
    names = usual | (dict(keys.names) if keys else {})
    places = {name: files.beside(frozen.moshi, file) for name, file in names.items()}
    unsaid = {
        name: place
        for name, place in places.items()
        if not getattr(frozen, name) or (name == "moshi" and files.is_folder(frozen.moshi))
        if names[name] != usual.get(name) or files.may_exist(place)  # a usual name is only a guess
    }
    config = dataclasses.replace(config, frozen=dataclasses.replace(frozen, **unsaid))
    if keys is None:
        return config
    open_fields = {
        path: value
        for path, (_, value) in keys.fields.items()
        if _get(config.model, path) == _get(_UNSAID, path)
        and not any(f"model.{path}.".startswith(f"{one.strip()}.") for one in said)
    }
    model = _replaced(config.model, open_fields)
    _compare(frozen.moshi, keys, model)
    return dataclasses.replace(config, model=model)


def check(moshi: str, model: schema.ModelConfig) -> None:
    """Checks that a model has the sizes that the files beside `frozen.moshi` state.

    Raises:
      ValueError: as `read`, or naming every key that contradicts the model.
      FileNotFoundError: if they are on the hub, which cannot be asked, and are not in its cache.
    """
    if keys := read(moshi):
        _compare(moshi, keys, model)


def read(moshi: str) -> moshi_keys.MoshiKeys | None:
    """Returns what the files beside `frozen.moshi` say; None if there are none.

    Raises:
      ValueError: if one is no JSON object, they contradict each other, or as `moshi_keys.read`.
      FileNotFoundError: as `files.find`.
    """
    raw: dict[str, Any] = {}
    found, unknown = [], []
    for name in _CONFIGS:
        try:
            path = files.find(files.beside(moshi, name))
        except FileNotFoundError as error:
            unknown.append(error)
            continue
        if path is None:
            continue
        found.append(str(path))
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}; fetch it again") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object, got {content!r:.80}")
        twice = [key for key in content if key in raw and raw[key] != content[key]]
        if twice:
            raise ValueError(f"{path}: contradicts {found[0]} in {twice}; remove the wrong one")
        raw |= content
    if unknown and not found:
        raise unknown[0]
    return moshi_keys.read(raw, place=" and ".join(found)) if found else None


def _compare(moshi: str, keys: moshi_keys.MoshiKeys, model: schema.ModelConfig) -> None:
    """Refuses a model that contradicts what a file states; a preset is only a default."""
    wrong = [
        f"{key}: makes model.{path} {value!r}, and the experiment says {_get(model, path)!r}"
        for path, (key, value) in keys.fields.items()
        if keys.stated and _get(model, path) != value
    ]
    if wrong:
        raise ValueError(
            f"{moshi}: the config beside it contradicts the experiment:"
            + messages.lines(wrong)
            + "\nLeave these fields out of the experiment, or name other weights."
        )


def _get(model: schema.ModelConfig, path: str) -> Any:
    return operator.attrgetter(path)(model)


def _replaced(model: schema.ModelConfig, values: Mapping[str, Any]) -> schema.ModelConfig:
    """Returns the model with the fields of {path: value}, all at once."""
    changes: dict[str, Any] = {}
    for path, value in values.items():
        part, _, field = path.rpartition(".")
        if part:
            before = changes.get(part, getattr(model, part))
            changes[part] = dataclasses.replace(before, **{field: value})
        else:
            changes[field] = value
    return dataclasses.replace(model, **changes)
