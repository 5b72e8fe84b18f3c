"""A deployer's machine: the PyTorch and MLX runtimes and the Rust codec where no jax can be imported."""

import json
import subprocess
import sys
from pathlib import Path

import exported
import mimi_file
import pytest

from mvjax.config import frozen

SCRIPT = Path(__file__).with_name("without_jax.py")
PACKAGES = {"torch": "torch", "mlx": "mlx.core"}


def run(*args) -> dict:
    """What the script prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", PACKAGES)
def test_a_folder_is_loaded_and_stepped(target, tmp_path):
    pytest.importorskip(PACKAGES[target])
    _, folder = exported.write(exported.TOY, target, tmp_path)
    said = run(folder)
    frames = said[folder.name]
    assert len(frames["text"]) == 6 and all(0 <= token < 37 for token in frames["text"])
    assert len(frames["audio"]) == 5 and min(frames["gates"]) > 0
    others = {"torch", "mlx", "transformers", "PIL", "sentencepiece"} - {target}
    assert not others & set(said["imported"])


@pytest.mark.slow
def test_a_frame_goes_through_the_rust_codec(tmp_path):
    pytest.importorskip("rustymimi")
    path = tmp_path / "mimi.safetensors"
    mimi_file.write_random(path, frozen.MimiConfig())
    said = run("--codec", path)
    assert said["codec"] == [1, 8, 1, 1, 1920]
    assert not {"torch", "mlx"} & set(said["imported"])
