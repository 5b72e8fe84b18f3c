"""The Python of the README, run as it is written on a run of the digits world."""

import dataclasses
import functools
import re
import textwrap
from pathlib import Path

import jax
import numpy as np
import toy
from PIL import Image

from mvjax import types
from mvjax.config import schema
from mvjax.digits import recipe
from mvjax.train import fit

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


def test_the_model_in_ten_lines(tmp_path, monkeypatch, capsys):
    config = toy.with_train(recipe.digits(), steps=2)
    config = toy.with_data(config, speech_rows=8, speechless_rows=8, speech_frames=8, prepare=None)
    config = dataclasses.replace(config, optim=schema.OptimConfig(warmup_steps=1))
    run = tmp_path / "runs" / "quickstart" / "run"
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        fit.fit(config, run, data=RandomData(config), quiet=True)
    Image.fromarray(np.arange(3 * 60 * 50, dtype=np.uint8).reshape(60, 50, 3)).save(
        tmp_path / "photo.png"
    )
    monkeypatch.chdir(tmp_path)
    section = README.read_text().split("## In Python")[1]
    code = re.search(r"(?:^(?: {4}.*)?\n)+", section, re.MULTILINE)[0]
    seen = {}
    exec(textwrap.dedent(code), seen)
    frame = seen["frame"]
    assert 0 <= frame.text_token < config.model.text_vocab
    assert frame.audio_codes is None and 0 < frame.gate < 1
    assert capsys.readouterr().out.endswith(f"{frame.text_token} None {frame.gate}\n")
    assert seen["session"].step(np.full(8, -1)).audio_codes.shape == (8,)
