"""Finds benchmarks: the files of `mvjax/eval/benchmarks`, and any other file by its path."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from mvjax import messages
from mvjax.eval import benchmarks

Known = Mapping[str, type[benchmarks.Benchmark]]


def names() -> list[str]:
    """Returns the names of the benchmarks that come with the package, without importing them."""
    folder = Path(str(benchmarks.__file__)).parent
    return sorted(path.stem for path in folder.glob("[!_]*.py"))


def find(name: str, *, option: str, others: Iterable[str] = ()) -> type[benchmarks.Benchmark]:
    """Returns the class of a benchmark, by name or by the path of its file.

    Args:
      name: of a file in `mvjax/eval/benchmarks`, or a path that ends with .py.
      option: what named it, for messages.
      others: names that the caller knows besides.

    Raises:
      ValueError: if there is no such benchmark, or its file does not define one.
    """
    if name.endswith(".py"):
        return _defined(_load(Path(name), option))
    if name in names():
        return _defined(importlib.import_module(f"{benchmarks.__name__}.{name}"))
    known = sorted([*others, *names()])
    raise ValueError(f"{option}: unknown {name!r}; {messages.did_you_mean(name, known)}")


def _load(path: Path, option: str) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"{option} {path}: expected a file that defines a benchmark, got none")
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{option} {path}: {type(error).__name__}: {error}") from error
    return module


def _defined(module: ModuleType) -> type[benchmarks.Benchmark]:
    """The one benchmark that a module defines."""
    found = [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, benchmarks.Benchmark)
        and value.__module__ == module.__name__
        and not (inspect.isabstract(value) or name.startswith("_"))
    ]
    place = module.__file__
    if len(found) != 1:
        raise ValueError(
            f"{place}: expected one class that derives from Benchmark, got"
            f" {messages.names([value.__name__ for value in found]) if found else 'none'}"
        )
    stem = Path(str(place)).stem
    if getattr(found[0], "name", None) != stem:
        raise ValueError(f"{place}: {found[0].__name__}.name: expected {stem!r}, the file's name")
    return found[0]
