"""The table of extras is pyproject.toml's, and a command whose extra is missing names it in one line."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mvjax.commands import extras

ROOT = Path(__file__).parents[2]
DIGITS = "experiments/digits.py"
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from mvjax import cli
sys.exit(cli.main({argv!r}))
"""


def _names(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[<>=!~; ]", text)[0] for text in requirements}
    return names - {"mvjax"}  # an extra that includes others


def test_the_table_is_that_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    expected = {extra: _names(packages) for extra, packages in optional.items() if extra != "dev"}
    expected[extras.BASE] = _names(project["dependencies"])
    assert {extra: set(packages) for extra, packages in extras.PACKAGES.items()} == expected


@pytest.mark.parametrize(
    ("argv", "absent", "message"),
    [
        (["train", DIGITS, "--out", "x"], "jax", "needs jax: pip install 'mvjax[train]'"),
        (["train", DIGITS, "--out", "x"], "flax", "needs flax: pip install 'mvjax[train]'"),
        (["show", DIGITS], "jax", "needs jax: pip install 'mvjax[train]'"),
        (["eval", "x"], "jax", "needs jax: pip install 'mvjax[train]'"),
        (
            ["export", "x", "--target", "candle", "--quantize", "q8_0", "--out", "y"],
            "gguf",
            "needs gguf: pip install 'mvjax[candle]'",
        ),
        (
            ["export", "x", "--target", "mlx", "--out", "y"],
            "jax",
            "needs jax: pip install 'mvjax[train]'",
        ),
        (["quickstart"], "jax torch mlx", "needs jax: pip install 'mvjax[train]'"),
        (["serve", "x"], "aiohttp", "needs aiohttp: pip install 'mvjax[serve]'"),
        (["serve", "x"], "sphn", "needs sphn: pip install 'mvjax[serve]'"),
        (["data", "digits", "--out", "x"], "sklearn", "needs sklearn: pip install 'mvjax[train]'"),
    ],
)
def test_a_command_without_its_extra_names_it_in_one_line(tmp_path, argv, absent, message):
    argv = [str(ROOT / word) if word == DIGITS else word for word in argv]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=absent.split(), argv=argv)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"mvjax {argv[0]} {message}\n")
    assert list(tmp_path.iterdir()) == []
