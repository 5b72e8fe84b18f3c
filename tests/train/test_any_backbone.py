"""From the folder of a backbone alone to a certified export: training, reading back, the card."""

import dataclasses

import families
import jax
import numpy as np
import pytest
import toy

from mvjax import types
from mvjax.config import schema
from mvjax.export import certificate
from mvjax.export import folder as export_folder
from mvjax.train import fit, load

DATA = dataclasses.replace(toy.DATA, speech_rows=8)  # a row for each device
BACKBONES = {
    "personaplex": (families.PERSONAPLEX, {"steps": 16}, "config.json"),
    "j-moshi": (families.LM_KWARGS, {"tokenizer": families.TOKENIZER}, "moshi_lm_kwargs.json"),
}


class Data(toy.Data):
    """The toy's batches, for the streams of the family."""

    def __getitem__(self, step: int) -> types.Batch:
        rng, d = np.random.default_rng(step), DATA
        return types.Batch(
            toy.part(rng, d.speech_rows, d.speech_frames, spoken=True, model=families.MODEL),
            toy.part(
                rng, d.speechless_rows, d.speechless_tokens, spoken=False, model=families.MODEL
            ),
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_a_folder_is_enough_to_train_and_export(name, tmp_path):
    pytest.importorskip("torch")
    config, how, file = BACKBONES[name]
    checkpoint = families.write(tmp_path / name, config, name=file, **how)
    said = families.MODEL if name == "personaplex" else None  # its config names no sizes
    run = families.config(checkpoint, said)
    run = dataclasses.replace(run, data=DATA, optim=schema.OptimConfig(warmup_steps=1))
    run = toy.with_train(run, steps=2, log_every=1)
    with jax.numpy_dtype_promotion("standard"):
        fit.fit(run, tmp_path / "run", data=Data(DATA), quiet=True)
    trained = load.trained(tmp_path / "run")
    assert trained.config.model == families.MODEL
    assert trained.config.frozen.tokenizer == str(tmp_path / name / families.TOKENIZER)
    out = export_folder.export(trained.params, trained.config, "torch", tmp_path / "out")
    rng = np.random.default_rng(1)
    side = families.MODEL.siglip.image_size
    found = certificate.certify(
        trained.params,
        trained.config,
        out,
        "torch",
        pixels=rng.uniform(-1, 1, (1, side, side, 3)).astype(np.float32),
        user_codes=rng.integers(0, 13, (8, 104)),
    )
    assert (found["verdict"], found["reasons"]) == ("pass", [])
    card = (out / "README.md").read_text()
    assert ("NVIDIA Open Model License" in card) == (name == "personaplex")
