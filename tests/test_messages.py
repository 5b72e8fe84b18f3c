"""Lists in messages: the first items and the count, one more line never standing for a single item."""

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mvjax import messages, tree

PACKAGE = Path(messages.__file__).parent


def test_a_long_list_is_cut_and_keeps_its_count():
    assert messages.names(range(355), shown=3) == "0, 1, 2, ... and 352 more"
    assert messages.lines(range(355)).splitlines()[-1] == "  ... and 335 more"
    assert (
        len(messages.lines(range(355)).splitlines()) == 22
    )  # an empty one first: it follows a colon


def test_a_list_that_fits_is_whole():
    assert messages.names("abcd", shown=3) == "a, b, c, d"
    assert messages.names(["a: x", "b: y"], between="; ") == "a: x; b: y"
    assert (messages.names([]), messages.lines([])) == ("nothing", "")


def test_the_similar_name_or_all_of_them():
    assert messages.did_you_mean("tain", ["train", "show"]) == "did you mean 'train'?"
    assert messages.did_you_mean("zzz", ["train", "show"]) == "expected one of: train, show"


def test_a_file_of_another_model_is_told_in_a_screenful():
    """355 lines once: every tensor of a 7B file that is not in the config."""
    paths = {f"backbone/blocks/{i}/kernel": np.zeros((2, 3), np.float32) for i in range(355)}
    with pytest.raises(ValueError, match=r"w.safetensors: 710 parameters differ") as error:
        tree.assert_same_tree(
            tree.unflatten(paths),
            tree.unflatten(
                {path.replace("backbone", "other"): leaf for path, leaf in paths.items()}
            ),
            place="w.safetensors",
        )
    assert len(str(error.value).splitlines()) == 22
    assert "... and 690 more" in str(error.value)


def test_a_pattern_that_matches_nothing_is_told_beside_some_parameters():
    params = tree.unflatten({f"a/{i}": np.zeros(1) for i in range(2000)})
    with pytest.raises(ValueError, match="match no parameter: b.*; parameters: a/0, .* 1960 more"):
        tree.partition(params, ("a/.*", "b.*"))


def test_one_of_a_thing_has_no_plural():
    assert messages.counted(1, "problem") == "1 problem"
    assert messages.counted(0, "problem") == "0 problems"
    assert messages.counted(1, "entry", "entries") == "1 entry"
    assert messages.counted(2, "entry", "entries") == "2 entries"


def test_a_command_is_shown_as_it_has_to_be_typed(tmp_path, monkeypatch):
    venv = tmp_path / "a" / ".venv" / "bin"
    venv.mkdir(parents=True)
    for name in ("python", "mvjax"):
        (venv / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(venv / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path / "a")
    assert messages.typed("mvjax serve runs/x") == ".venv/bin/mvjax serve runs/x"
    assert messages.typed("cargo run") == "cargo run"  # no program of this environment
    monkeypatch.setenv("PATH", str(venv))
    assert messages.typed("mvjax serve x") == "mvjax serve x"
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert messages.typed("mvjax serve x") == f"{venv / 'mvjax'} serve x"


def test_no_error_lists_without_the_helper():
    """A list of lines that is joined by hand can be of any length."""
    by_hand = re.compile(r"""["'](?:\\n  |; )["']\.join|\\n  \{\w+\}["'] for""")
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                text = ast.get_source_segment(path.read_text(), node) or ""
                if by_hand.search(text):
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []
