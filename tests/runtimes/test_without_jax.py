"""A deployer's machine: PyTorch and MLX runtimes, codec, talk and server where no jax can be imported."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import exported
import mimi_file
import pytest

from mvjax import files
from mvjax.config import frozen
from mvjax.digits import frozen_models
from mvjax.weights import file_names

SCRIPT = Path(__file__).with_name("without_jax.py")
PACKAGES = {"torch": "torch", "mlx": "mlx.core"}


def run(*args) -> dict:
    """What the script prints, in a process of its own."""
    paths = [str(SCRIPT.parents[1] / "serve"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
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
@pytest.mark.parametrize("target", PACKAGES)
def test_a_folder_of_the_released_structure_talks_and_is_served(target, tmp_path):
    """All streams and the released codec, in Rust; the model is narrow, and its weights are random."""
    for package in (PACKAGES[target], "rustymimi", "aiohttp", "sphn", "espeakng_loader"):
        pytest.importorskip(package)
    delays = (0, *2 * (0, *7 * (1,)))
    config = dataclasses.replace(
        exported.TOY, text_vocab=204, audio_vocab=2048, codebooks_out=8, delays=delays
    )
    _, folder = exported.write(config, target, tmp_path)
    mimi_file.write_random(folder / file_names.CODEC, frozen.MimiConfig())
    tokenizer = files.resolve(frozen_models.FROZEN.tokenizer).read_bytes()
    (folder / file_names.TOKENIZER).write_bytes(tokenizer)
    said = run("--talk", folder)["talk"]
    assert len(said["gates"]) == round(said["seconds"] / 0.08) > 8 and min(said["gates"]) > 0
    assert said["loudest"] > 0 and said["served"] == [2 * 1920] * 3
