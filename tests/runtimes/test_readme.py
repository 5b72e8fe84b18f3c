"""The Python of the README, run as it is written on a run of the digits world."""

import argparse
import dataclasses
import functools
import json
import re
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from PIL import Image

from mvjax import cli, run_folder, types
from mvjax.commands import speakers
from mvjax.config import schema
from mvjax.digits import recipe
from mvjax.train import fit

pytestmark = pytest.mark.slow

RUN = "runs/quickstart/run"
README = Path(__file__).parents[2] / "README.md"


class RandomData:
    """The same random batch at each step."""

    def __init__(self, config):
        part = functools.partial(toy.part, np.random.default_rng(0), model=config.model)
        d = config.data
        self.batch = types.Batch(
            speech=part(d.speech_rows, d.speech_frames, spoken=True),
            speechless=part(d.speechless_rows, d.speechless_tokens, spoken=False),
        )

    def __getitem__(self, step):
        return self.batch

    def ids(self, step):
        return {}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a run of two steps, where the quickstart has it, and a photo."""
    folder = tmp_path_factory.mktemp("project")
    config = toy.with_train(recipe.digits(), steps=2)
    config = toy.with_data(config, speech_rows=8, speechless_rows=8, speech_frames=8, prepare=None)
    config = dataclasses.replace(config, optim=schema.OptimConfig(warmup_steps=1))
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        fit.fit(config, folder / RUN, data=RandomData(config), quiet=True)
    image = Image.fromarray(np.arange(3 * 60 * 50, dtype=np.uint8).reshape(60, 50, 3))
    image.save(folder / "photo.png")
    return folder


def test_the_model_in_ten_lines(project, monkeypatch, capsys):
    config = recipe.digits()
    monkeypatch.chdir(project)
    section = README.read_text().split("## In Python")[1]
    code = re.search(r"(?:^(?: {4}.*)?\n)+", section, re.MULTILINE)[0]
    seen = {}
    exec(textwrap.dedent(code), seen)
    frame = seen["frame"]
    assert 0 <= frame.text_token < config.model.text_vocab
    assert frame.audio_codes is None and 0 < frame.gate < 1
    assert capsys.readouterr().out.endswith(f"{frame.text_token} None {frame.gate}\n")
    assert seen["session"].step(np.full(8, -1)).audio_codes.shape == (8,)


def test_a_run_talks_in_jax(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    asked = ["--image", "photo.png", "--text", "what is it", "--lead-in", "0.08", "--tail", "0.4"]
    assert cli.main(["talk", f"{RUN}@2", *asked, "--out", "answer.wav"]) == 0
    written = json.loads(Path("answer.json").read_text())
    question = written["questions"][0]
    assert question["asked"] == "what is it" and question["answer"] in capsys.readouterr().out
    assert Path("answer.wav").stat().st_size > 4 * types.FRAME_SAMPLES * 6
    with pytest.raises(ValueError, match="expected an export folder, got the run"):
        speakers.open_speaker(
            argparse.Namespace(folder=run_folder.parse(RUN), quantize="int8", dtype=None),
            minutes=1.0,
        )
