"""Configs of older versions: fields that were renamed or removed, with a warning, or that had no name yet."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")

_BETWEEN = (__file__, dataclasses.__file__)  # of the line of an experiment and a warning
_SHOWN: dict[Any, Any] = {}  # warnings; each line's is shown once

RENAMED = {
    "optim.ema": "optim.ema_decay",
    "optim.final_fraction": "optim.final_lr_fraction",
    "train.accumulate": "train.grad_accum_steps",
    "train.logit_frames": "train.loss_chunk",
    "train.stall_seconds": "train.watchdog_seconds",
    "train.stall_stacks": "train.watchdog_stacks",
}
_ROUNDING = "how an upstream runtime rounds is not imitated"
# {path: (values that still can be read, since they say what is done anyway; why no others)}
REMOVED: dict[str, tuple[tuple[Any, ...], str]] = {
    # torch's differs less than an encoder feature's rounding to bfloat16
    "model.siglip.resampler": (("torch", "pillow"), "images are resized by Pillow"),
    "model.cross_attention.gate_dtype": (("float32",), _ROUNDING),
    "model.cross_attention.image_norm_dtype": (("float32",), _ROUNDING),
    "model.cross_attention.keys_values": (("activations",), _ROUNDING),
    "model.cross_attention.norm_without_image": (
        (False,),
        "what kyuteye_mlx adds where there is no image is not imitated",
    ),
    "model.cross_attention.scope.type": (
        ("Scope",),
        "rows hold no image tokens that frames could be counted from; choose frames with Scope",
    ),
    "model.stream.first_acoustic_kept": (
        (False,),
        "what kyuteye_rs does with the acoustic codes of call 0 is not imitated",
    ),
}
# {field: what was done before there was a choice}
ADDED = {"model.stream.absent_start": "nothing"}
# beginnings of values that name a module
MOVED = {
    "package:mvjax.tiny/": "package:mvjax.digits/",
    "mvjax.tiny.records:": "mvjax.digits.records:",
}


def upgrade(data: Any) -> Any:
    """Returns the JSON of a whole run in today's names; one warning names all that were not.

    Raises:
      ValueError: naming every field that is given under both names, or removed with a value that mattered.
    """
    data, notes, problems = copy.deepcopy(data), [], []
    for old, new in RENAMED.items():
        parent, name, new_name = _parent(data, old), old.split(".")[-1], new.split(".")[-1]
        if name in parent and new_name in parent:
            problems.append(f"{old} is now {new}, and both are given; leave out {old}")
        elif name in parent:
            parent[new_name] = parent.pop(name)
            notes.append(f"{old} is now {new}")
    for path in REMOVED:
        parent, name = _parent(data, path), path.split(".")[-1]
        try:
            if name in parent and is_dropped(path, parent.pop(name), warn=False):
                notes.append(f"{path} is gone")
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    for path, value in ADDED.items():
        if parent := _parent(data, path):
            parent.setdefault(path.split(".")[-1], value)
    data = _moved(data, notes)
    if notes:
        _warn("; ".join(dict.fromkeys(notes)))
    return data


def current_path(path: str) -> str:
    """Returns today's name of a field, with a warning if it is another one."""
    if path not in RENAMED:
        return path
    _warn(f"{path} is now {RENAMED[path]}")
    return RENAMED[path]


def current_value(value: Any) -> Any:
    """Returns a JSON value with today's names of modules, with a warning if any was another one."""
    notes: list[str] = []
    value = _moved(value, notes)
    if notes:
        _warn("; ".join(dict.fromkeys(notes)))
    return value


def is_dropped(path: str, value: Any, *, warn: bool = True) -> bool:
    """Returns whether a field was removed, and its value changes nothing.

    Raises:
      ValueError: if it was removed, and the value would change something.
    """
    if isinstance(value, str) and f"{path}.type" in REMOVED:  # a class by its name
        path = f"{path}.type"
    if path not in REMOVED:
        return False
    harmless, why = REMOVED[path]
    if value not in harmless or type(value) is not type(harmless[0]):
        accepted = " or ".join(map(repr, harmless))
        raise ValueError(
            f"{path}: this field is gone, because {why}; expected {accepted}, got {value!r}"
        )
    if warn:
        _warn(f"{path} is gone")
    return True


def reads_old_keywords(path: str) -> Callable[[type[T]], type[T]]:
    """Decorates the dataclass at a path of the config: it may be made with old names and values.

    `dataclasses.replace` gives every field, too, and the old name wins there; else both names are refused.
    """
    names = {old.rpartition(".")[2]: new for old, new in RENAMED.items() if _is_in(path, old)}
    gone = {old.rpartition(".")[2]: old for old in REMOVED if _is_in(path, old)}

    def decorate(kind: type[T]) -> type[T]:
        make = kind.__init__

        @functools.wraps(make)
        def init(self, *args, **values):
            replaces = len(values) > len(dataclasses.fields(cast(Any, kind)))
            for name in [name for name in values if name in names]:
                new = current_path(f"{path}.{name}").rpartition(".")[2]
                if new in values and not replaces:
                    raise ValueError(
                        f"{path}.{name} is now {path}.{new}, and both are given; leave out {name}"
                    )
                values[new] = values.pop(name)
            for name in [name for name in values if name in gone]:
                is_dropped(gone[name], values.pop(name))
            args = map(current_value, args)
            make(self, *args, **{name: current_value(value) for name, value in values.items()})

        kind.__init__ = init
        return kind

    return decorate


def _is_in(path: str, field: str) -> bool:
    return field.rpartition(".")[0] == path


def _parent(data: Any, path: str) -> dict[str, Any]:
    """Returns the JSON object that would hold a field; an empty one if there is none."""
    for name in path.split(".")[:-1]:
        data = data.get(name) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _moved(data: Any, notes: list[str]) -> Any:
    """Returns JSON with today's names of modules, and notes which were others."""
    if isinstance(data, dict):
        return {name: _moved(value, notes) for name, value in data.items()}
    if isinstance(data, list):
        return [_moved(value, notes) for value in data]
    for old, new in MOVED.items():
        if isinstance(data, str) and data.startswith(old):
            notes.append(f"{old} is now {new}")
            return new + data.removeprefix(old)
    return data


def _warn(notes: str) -> None:
    """Warns at the line of the experiment that has the old words, or, if these are no code, at no line."""
    message = f"config: {notes}; the old text is read in this version only"
    frame = sys._getframe(1)
    while (file := frame.f_code.co_filename) in _BETWEEN and frame.f_back is not None:
        frame = frame.f_back
    ours = Path(__file__).parents[1] in Path(file).parents
    file, line = ("mvjax", 0) if ours else (file, frame.f_lineno)
    warnings.warn_explicit(message, FutureWarning, file, line, registry=_SHOWN)
