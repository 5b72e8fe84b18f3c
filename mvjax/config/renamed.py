"""Fields of configs that were renamed or removed: their old text is read for one version, with a warning."""

from __future__ import annotations

import copy
import typing
import warnings
from typing import Any

from mvjax.config import schema

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


def explain(kind: type, name: str) -> str | None:
    """Returns what became of the old field `name` of a class of the schema; None if there was no such."""
    for path, new in RENAMED.items():
        if path.split(".")[-1] == name and _class_at(path) is kind:
            return f"field '{name}' of {kind.__name__} is now '{new.split('.')[-1]}'"
    for path, (_, why) in REMOVED.items():
        if path.split(".")[-1] == name and _class_at(path) is kind:
            return f"field '{name}' of {kind.__name__} is gone, because {why}; leave it out"
    return None


def _parent(data: Any, path: str) -> dict[str, Any]:
    """Returns the JSON object that would hold a field; an empty one if there is none."""
    for name in path.split(".")[:-1]:
        data = data.get(name) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _class_at(path: str) -> type:
    """Returns the class whose field a path names."""
    kind: Any = schema.Config
    for name in path.split(".")[:-1]:
        kind = typing.get_type_hints(kind)[name]
    return kind


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
    message = f"config: {notes}; the old text is read in this version only"
    warnings.warn(message, FutureWarning, stacklevel=3)
