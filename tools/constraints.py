"""Prints constraint files for pip: exact versions of everything that an environment should hold.

python tools/constraints.py freeze     # what is installed beside this Python, but mvjax itself
python tools/constraints.py lowest     # the lower bound of every requirement in pyproject.toml
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
# They come with one platform's build of torch, in the versions that it asks for.
_CUDA = re.compile(r"(nvidia|cuda)[-_].*|triton")
_BOUND = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)")


def frozen() -> Iterator[str]:
    """Yields NAME==VERSION of what is installed; a local version such as 2.13.0+cpu loses its suffix."""
    versions = {d.name.lower().replace("_", "-"): d.version for d in metadata.distributions()}
    for name, version in sorted(versions.items()):
        if name not in {"mvjax", "pip", "setuptools", "wheel"} and not _CUDA.fullmatch(name):
            yield f"{name}=={version.partition('+')[0]}"


def lowest() -> Iterator[str]:
    """Yields NAME==BOUND of every requirement that has a lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    bounds = dict(
        match.groups() for group in groups for entry in group if (match := _BOUND.match(entry))
    )
    yield from (f"{name}=={bound}" for name, bound in sorted(bounds.items()))


def main() -> None:
    """Prints one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("freeze", "lowest"))
    which = parser.parse_args().which
    print(f"# Made by `python tools/constraints.py {which}`; not edited by hand.")
    print("\n".join(frozen() if which == "freeze" else lowest()))


if __name__ == "__main__":
    main()
