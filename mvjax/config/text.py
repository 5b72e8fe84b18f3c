"""Configs in and out of text: experiment files, flat text, JSON, typed override by path, differences."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import json
import os
import re
import runpy
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mvjax import messages
from mvjax.config import renamed, schema

_UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")

Json = Any  # None, bool, int, float, str, list or dict of the same


def load_experiment(path: Path, *, pick: str | None = None) -> schema.Config:
    """Runs an experiment file and returns `config()`, or the config named `pick` of `sweep()`.

    It may import the files beside it.

    Raises:
      ValueError: if there is no such file, it fails, it defines neither function, or has no such name.
    """
    with experiment_file(path) as names:
        if pick is None and "config" in names:
            return names["config"]()
        configs: dict[str, schema.Config] = names["sweep"]() if "sweep" in names else {}
    if pick is None:
        fact = f"is a sweep; choose one with --pick: {messages.names(configs)}"
        fact = fact if configs else "expected a function config() or sweep(), got neither"
        raise ValueError(f"{path}: {fact}")
    if pick not in configs:
        raise ValueError(f"{path}: no '{pick}' in sweep(); {messages.did_you_mean(pick, configs)}")
    return configs[pick]


@contextlib.contextmanager
def experiment_file(path: Path) -> Iterator[dict[str, Any]]:
    """Runs an experiment file; yields its names, to be called inside. All failures become a ValueError."""
    if not path.is_file():
        raise ValueError(f"{path}: expected an experiment file (Python), got none")
    try:
        with _importable(path.parent):
            yield runpy.run_path(str(path))
    except Exception as error:
        raise ValueError(f"{path}: {_failure(error)}") from error


def to_json(value: Any) -> Json:
    """Returns plain JSON values; a dataclass in a union field carries its class name as `type`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        data = {}
        for field in dataclasses.fields(value):
            child = getattr(value, field.name)
            data[field.name] = to_json(child)
            if dataclasses.is_dataclass(child) and _is_union(hints[field.name]):
                data[field.name] = {"type": type(child).__name__, **data[field.name]}
        return data
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if callable(value):
        return _function_name(value)
    return value


def from_json(data: Json) -> schema.Config:
    """Inverse of `to_json` for a whole run; also reads the names of the version before.

    Raises:
      ValueError: naming the first field that is unknown, missing or of the wrong type.
    """
    return _decode(schema.Config, renamed.upgrade(data), "config")


def flatten(value: schema.Config) -> dict[str, Json]:
    """Returns {path: JSON leaf}; a union field shows its class name at its own path."""
    flat: dict[str, Json] = {}

    def walk(path: str, node: Json) -> None:
        if isinstance(node, dict):
            if "type" in node:
                flat[path] = node["type"]
            for key, child in node.items():
                if key != "type":
                    walk(f"{path}.{key}" if path else key, child)
        elif isinstance(node, list) and node and isinstance(node[0], dict):
            for index, child in enumerate(node):
                walk(f"{path}.{index}", child)
        else:
            flat[path] = node

    walk("", to_json(value))
    return flat


def to_text(value: schema.Config) -> str:
    """Returns one `path = value` line a field, values as JSON: the form that `--set` reads."""
    return "".join(f"{path} = {json.dumps(leaf)}\n" for path, leaf in flatten(value).items())


def differences(first: schema.Config, second: schema.Config) -> dict[str, tuple[Json, Json]]:
    """Returns {path: (value in first, value in second)} of the fields that differ; None where absent."""
    a, b = flatten(first), flatten(second)
    return {p: (a.get(p), b.get(p)) for p in {**a, **b} if a.get(p) != b.get(p)}


def override(value: schema.Config, settings: Sequence[str]) -> schema.Config:
    """Applies `path=value` settings in order, such as `optim.learning_rate=1e-3`.

    A class of a union field is chosen by name (`model.cross_attention.gate=Constant`), an element of a
    tuple by its number (`data.speech.0.weight=2`).

    Raises:
      ValueError: listing every setting that names no field or holds a value of the wrong type.
    """
    problems = []
    for setting in settings:
        path, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            problems.append(f"--set {setting}: expected PATH=VALUE, got no '='")
            continue
        try:
            path = renamed.current_path(path)
            if not renamed.is_dropped(path, _parse(object, text)):
                value = _set(schema.Config, value, path.split("."), text, "config")
        except ValueError as error:
            problems.append(f"--set {setting}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return value


def _set(hint: Any, value: Any, path: list[str], text: str, place: str) -> Any:
    if not path:
        return _decode(hint, renamed.current_value(_parse(hint, text)), place)
    name, *rest = path
    if isinstance(value, tuple) and name.isdigit() and int(name) < len(value):
        index = int(name)
        child = _set(
            _element_hints(hint, len(value))[index], value[index], rest, text, f"{place}.{name}"
        )
        return (*value[:index], child, *value[index + 1 :])
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(f"{place} is {to_json(value)!r} and has no field '{name}'")
    hints = typing.get_type_hints(type(value))
    if name not in hints:
        raise ValueError(_unknown(name, type(value), place))
    child = _set(hints[name], getattr(value, name), rest, text, _join(place, name))
    return _build(type(value), {**_fields(value), name: child}, place)


def _parse(hint: Any, text: str) -> Json:
    if hint is str and not text.startswith(('"', "'")):
        return text
    if typing.get_origin(hint) is typing.Literal and text in typing.get_args(hint):
        return text  # "none" is a value of some
    if text.lower() in ("none", "null"):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            parsed = read(text)
        except (ValueError, SyntaxError):
            continue
        return list(parsed) if isinstance(parsed, tuple) else parsed
    return text


def _decode(hint: Any, data: Json, place: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if _is_union(hint):
        return _decode_union(args, data, place)
    if origin is typing.Literal:
        if data not in args:
            raise ValueError(f"{place}: expected one of {list(args)}, got {data!r}")
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{place}: expected a list, got {data!r}")
        hints = _element_hints(hint, len(data))
        if len(hints) != len(data):
            wanted = messages.counted(len(hints), "value")
            raise ValueError(f"{place}: expected {wanted}, got {len(data)}: {data!r}")
        pairs = zip(hints, data, strict=True)
        return tuple(_decode(h, d, f"{place}.{i}") for i, (h, d) in enumerate(pairs))
    if origin is Callable or hint is Callable:
        return _function(data, place)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(typing.cast(type, hint), data, place)
    if hint is float and type(data) is int:
        return float(data)
    if type(data) is not hint:
        raise ValueError(f"{place}: expected {hint.__name__}, got {data!r}")
    return data


def _decode_union(args: tuple[Any, ...], data: Json, place: str) -> Any:
    if data is None and type(None) in args:
        return None
    classes: dict[str, type] = {a.__name__: a for a in args if dataclasses.is_dataclass(a)}  # pyright: ignore
    if not classes:
        (hint,) = [arg for arg in args if arg is not type(None)]
        return _decode(hint, data, place)
    name = data.get("type") if isinstance(data, dict) else data
    if isinstance(data, dict) and name is None:  # written when the field had one class only
        whole = {
            n for n, c in classes.items() if {f.name for f in dataclasses.fields(c)} == set(data)
        }
        name = whole.pop() if len(whole) == 1 else None
    if name not in classes:
        known = [*sorted(classes), *(["none"] if type(None) in args else [])]
        raise ValueError(f"{place}: unknown {name!r}; {messages.did_you_mean(str(name), known)}")
    fields = {k: v for k, v in data.items() if k != "type"} if isinstance(data, dict) else {}
    return _decode_dataclass(classes[name], fields, place)


def _decode_dataclass(kind: type, data: Json, place: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{place}: expected the fields of {kind.__name__}, got {data!r}")
    hints = typing.get_type_hints(kind)
    unknown = [_unknown(name, kind, place) for name in data if name not in hints]
    if unknown:
        raise ValueError(messages.names(unknown, between="; "))
    values = {name: _decode(hints[name], item, _join(place, name)) for name, item in data.items()}
    return _build(kind, values, place)


def _build(kind: type, values: dict[str, Any], place: str) -> Any:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place} ({kind.__name__}): {error}") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """While this lasts, the files of a folder can be imported, and are read anew."""
    place, before = str(folder.resolve()), set(sys.modules)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        new = {name: sys.modules[name] for name in set(sys.modules) - before}
        theirs = {name for name, module in new.items() if place in _folders(module)}
        for name in new:
            if name.partition(".")[0] in theirs:
                del sys.modules[name]


def _folders(module: types.ModuleType) -> list[str]:
    """The folders in which a file, or the folder of a package, lies."""
    places = (*getattr(module, "__path__", ()), getattr(module, "__file__", None) or "")
    return [os.path.dirname(place) for place in places]


def _failure(error: Exception) -> str:
    """What went wrong in an experiment file; a misspelled field gets a suggestion."""
    unexpected = _UNEXPECTED.match(str(error))
    kind = vars(schema).get(unexpected[1]) if unexpected else None
    if unexpected and dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _unknown(unexpected[2], kind, "the experiment")
    return f"fails with {type(error).__name__}: {error}"


def _unknown(name: str, kind: type, place: str) -> str:
    names = [field.name for field in dataclasses.fields(kind)]
    meant = messages.did_you_mean(name, names)
    return f"unknown field '{name}' in {place} ({kind.__name__}); {meant}"


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _join(place: str, name: str) -> str:
    return name if place == "config" else f"{place}.{name}"


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _element_hints(hint: Any, length: int) -> tuple[Any, ...]:
    args = typing.get_args(hint)
    return (args[0],) * length if len(args) == 2 and args[1] is Ellipsis else args


def _function_name(function: Any) -> str:
    name = f"{function.__module__}:{function.__qualname__}"
    if "<" in name or function.__module__ not in sys.modules:
        raise ValueError(
            f"expected a function of a module, which can be imported by name, got {name}"
        )
    return name


def _function(data: Json, place: str) -> Any:
    module, colon, name = str(data).partition(":")
    try:
        function = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{place}: cannot import {data!r}: {error}") from error
    if not callable(function):
        raise ValueError(f"{place}: expected MODULE:FUNCTION, got {data!r}")
    return function
