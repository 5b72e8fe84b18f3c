"""Resolves every extra of pyproject.toml in the oldest and newest Python that it claims; installs nothing.

    python tools/resolve.py [EXTRA,EXTRA...]     # `make resolve`; needs a package index, takes minutes

Asks `pip install --dry-run` for wheels of each Python: every extra as a user gets it; with constraints.txt
what `make` installs, of which the quickstart's part may bring neither torch nor CUDA. Fails where something
has no wheel for a Python, or two requirements contradict each other. For a Python that is not the running
one pip takes wheels only, so those of what is published as a source are made first; markers such as
`python_version < "3.12"` it takes from the running one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PYTHON = re.compile(r"Programming Language :: Python :: (3\.\d+)")
_HEAVY = re.compile(r"torch|triton|(nvidia|cuda)[-_].*")
_WITHOUT_WHEELS = ("docopt", "openai-whisper")  # of num2words and whisper-timestamped
_SHOWN = ("jax", "libtpu", "torch", "mlx")


def quickstart() -> str:
    """Returns the extras that `make quickstart` installs."""
    (found,) = re.findall(r'-e "\.\[([\w,]+)\$\(addprefix', (ROOT / "Makefile").read_text())
    return found


def cases(project: dict, asked: list[str]) -> Iterator[tuple[str, str, bool]]:
    """Yields (Python, extras, whether with constraints.txt)."""
    claimed = [match[1] for text in project["classifiers"] if (match := _PYTHON.fullmatch(text))]
    for python in (claimed[0], claimed[-1]):
        for extras in asked or project["optional-dependencies"]:
            yield python, extras, False
        for extras in [] if asked else [quickstart(), "dev", "tpu"]:
            yield python, extras, True


def resolve(
    pip: list[str], wheels: str, python: str, extras: str, *, constrained: bool
) -> dict[str, str]:
    """Returns {package: version} of what pip would install.

    Raises:
      ValueError: with pip's message.
    """
    command = [
        *pip, "install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-",
        "--python-version", python, "--only-binary", ":all:",
        "--find-links", wheels, "--target", wheels,  # which pip asks for, and leaves alone
        *(["-c", "constraints.txt"] if constrained else []), f".[{extras}]",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    found = [one["metadata"] for one in json.loads(done.stdout)["install"]]
    return {one["name"].lower().replace("_", "-"): one["version"] for one in found}


def main() -> int:
    """Prints a line for each case; returns the exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        # the newest pip: 23.2, for one, compares Requires-Python with the Python that it runs on
        subprocess.run(
            [sys.executable, "-m", "venv", "--upgrade-deps", f"{scratch}/venv"], check=True
        )
        pip = [f"{scratch}/venv/bin/python", "-m", "pip"]
        wheels = f"{scratch}/wheels"
        make = [*pip, "wheel", "--quiet", "--no-deps", "-w", wheels, *_WITHOUT_WHEELS]
        subprocess.run(make, check=True)
        return _report(pip, wheels)


def _report(pip: list[str], wheels: str) -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    failed = 0
    for python, extras, constrained in cases(project, sys.argv[1:]):
        name = f"Python {python}, {extras}{', constraints.txt' if constrained else ''}"
        try:
            found = resolve(pip, wheels, python, extras, constrained=constrained)
            heavy = sorted(name for name in found if _HEAVY.fullmatch(name))
            if heavy and extras == quickstart():
                raise ValueError(f"the quickstart would install {', '.join(heavy)}")
            shown = "".join(f", {name} {found[name]}" for name in _SHOWN if name in found)
            print(f"{name}: {len(found)} packages{shown}", flush=True)
        except ValueError as error:
            failed += 1
            print(f"{name}: FAILED\n{error}", flush=True)
    print("all resolved" if not failed else f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
