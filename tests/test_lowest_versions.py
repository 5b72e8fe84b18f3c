"""The lower bounds of pyproject.toml, installed and tried: `pytest -m lowest` (it needs a package index)."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.lowest
def test_quick_tests_pass_with_the_lowest_versions(tmp_path):
    make = ["make", "test-lowest", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
