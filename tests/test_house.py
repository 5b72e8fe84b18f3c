import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "check_house.py"
SPEC = importlib.util.spec_from_file_location("check_house", TOOL)
assert SPEC is not None and SPEC.loader is not None
check_house = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = check_house
SPEC.loader.exec_module(check_house)


def build(root, files):
    for name, text in files.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return check_house.read(root)


def test_the_house_breaks_no_rule():
    assert check_house.breaches(check_house.read()) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"nn/a": "from mvjax.train import b\n", "train/b": ""}, "nn.a imports train.b: an arrow up"),
        ({"train/a": "def f():\n    from mvjax.export import b\n", "export/b": ""}, "an arrow sideways"),
        ({"nn/a": "from mvjax.nn import b\n", "nn/b": "from mvjax.nn import a\n"}, "['nn.a', 'nn.b']"),
        ({"export/card": 'NAME = "mvjax.nn.a"\n', "nn/a": ""}, "names a module in a string: 'mvjax.nn.a'"),
        ({"data/x": 'f"mvjax.nn.{1}"\n', "nn/a": ""}, "names a module in a string: 'mvjax.nn.'"),
        (
            {"runtimes/torch/a": "from mvjax import gates\n", "gates": "from jax import numpy\n"},
            "runtimes.torch.a imports jax, by runtimes.torch.a -> gates -> jax",
        ),
        ({"nn/a": "x = 1\n" * 321}, "nn.a: 321 lines, over 320"),
        ({"nn/a": "def f():\n" + "    x = 1\n" * 60}, "nn.a.f: 61 lines, over 60"),
    ],
)  # fmt: skip
def test_a_breach_is_named(tmp_path, files, expected):
    found = check_house.breaches(build(tmp_path, files))
    assert len(found) == 1 and expected in found[0], found


def test_imports_that_are_right_are_no_breach(tmp_path):
    files = {
        "types": "",
        "nn/a": "import jax\nfrom mvjax import types\nfrom mvjax.nn import b\n",
        "nn/b": "from mvjax.types import Batch\n",
        "runtimes/torch/a": "import torch\n\ndef f():\n    import jax\n",
    }
    assert check_house.breaches(build(tmp_path, files)) == []


def test_a_room_on_no_floor_stops_the_check(tmp_path):
    with pytest.raises(SystemExit, match="cellar: a room on no floor"):
        check_house.breaches(
            build(tmp_path, {"cellar/a": "from mvjax import types\n", "types": ""})
        )
