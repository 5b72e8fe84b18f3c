"""What `make quickstart` installs, by the requirements of the packages that are here: no torch, no CUDA."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
HEAVY = re.compile(r"torch|triton|(nvidia|cuda)[-_].*")


def installs(*make: str) -> list[str]:
    """What the pip lines of a make target ask for: mvjax with its extras, and names of packages."""
    done = subprocess.run(["make", "-n", *make], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "pip" in line and " install " in line]
    assert lines
    return [
        word.strip('"').replace(".[", "mvjax[", 1)
        for line in lines
        for word in line.split(" install ")[1].split()
        if word[0] != "-" and word != "constraints.txt"
    ]


def requirements(name: str) -> list[str]:
    """Those of mvjax are pyproject.toml's; a package that is not installed here has none."""
    if name == "mvjax":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"].items()
        return project["dependencies"] + [
            f"{text.partition(';')[0]}; extra == '{extra}'"
            + (f" and ({text.partition(';')[2]})" if ";" in text else "")
            for extra, texts in extras
            for text in texts
        ]
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def closure(asked: list[str]) -> set[str]:
    """The names of all that pip would install."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in asked]
    while waiting:
        one = waiting.pop()
        for extra in ("", *one.extras):
            name = re.sub(r"[-_.]+", "-", one.name).lower()
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            waiting += [
                needed
                for needed in map(Requirement, requirements(name))
                if needed.marker is None or needed.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in seen}


@pytest.mark.parametrize("extras", ["", "torch"])
def test_the_quickstart_installs_torch_only_if_asked(extras, tmp_path):
    needed = closure(installs("quickstart", f"VENV={tmp_path}/venv", f"EXTRAS={extras}"))
    assert {"jax", "mlx", "rustymimi", "tensorstore"} <= needed  # also what others ask for
    heavy = {name for name in needed if HEAVY.fullmatch(name)}
    assert ("torch" in heavy) == bool(extras) and (extras or not heavy)
