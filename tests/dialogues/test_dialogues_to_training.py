"""The digits world's dialogues all the way: written (by a stand-in), spoken, encoded, trained on."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import standin_llm

from mvjax import cli
from mvjax.config import schema
from mvjax.data.records import dataset
from mvjax.dialogues import store
from mvjax.digits import frozen_models, recipe
from mvjax.train import fit


def mvjax(*words):
    assert cli.main([str(word) for word in words]) == 0


pytestmark = pytest.mark.slow  # the codec and the training step compile for several lengths


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two dialogues about pictures and one without, written and spoken by the command line."""
    root = tmp_path_factory.mktemp("dialogues")
    captions = standin_llm.captions(root, 2)
    with standin_llm.serving() as server:
        asked = ("--endpoint", server.url, "--concurrency", 3)
        mvjax("dialogues", "write", captions, "--out", root / "visual.jsonl", *asked)
        mvjax("dialogues", "write", "--unrelated", 1, "--out", root / "chat.db", *asked)
    for name in ("visual.jsonl", "chat.db"):
        out = root / name.split(".")[0]
        mvjax("dialogues", "speak", root / name, "--out", out, "--jobs", 1)
    return root


@pytest.fixture(scope="module")
def encoded(made):
    experiment = made / "exp.py"
    experiment.write_text("from mvjax.digits.recipe import digits as config\n")
    for name in ("visual", "chat"):
        words = (experiment, made / name, "--out", made / "records", "--name", name)
        mvjax("data", "encode", *words, "--workers", 0, "--batch-seconds", 60)
    return made / "records"


def test_records_hold_what_was_written_and_spoken(made, encoded):
    written = {d.id: d for d in store.read(made / "visual.jsonl")}
    reader = dataset.RecordReader(
        encoded / "visual", expected=dataset.identity(frozen_models.FROZEN)
    )
    assert {record.id for record in reader} == set(written) and len(written) == 2
    for record in reader:
        dialogue = written[record.id]
        assert record.turns == dialogue.turns and record.kinds == dialogue.kinds
        assert record.facts == dialogue.facts
        assert record.image == (made / dialogue.image).read_bytes()
        assert record.array().shape[0] == 16 and len(np.unique(record.array())) > 50
        said = [w.text for w in record.words]
        texts = [t.text for t in dialogue.turns if t.speaker == "assistant"]
        assert said == " ".join(texts).split()
    assert all(r.image is None for r in dataset.RecordReader(encoded / "chat", expected=None))


def test_two_steps_train_on_them(encoded, tmp_path):
    run = recipe.digits()
    data = dataclasses.replace(
        run.data,
        root=str(encoded),
        prepare=None,
        speech=(schema.Source("visual"),),
        speechless=(schema.Source("visual"),),
        small_talk=(schema.Source("chat"),),
        speech_rows=8,
        speechless_rows=8,
        speech_frames=60,
        p_concat=1.0,
    )
    optim = dataclasses.replace(run.optim, warmup_steps=0)
    train = dataclasses.replace(run.train, steps=2, log_every=1, checkpoint_every=2)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        fit.fit(dataclasses.replace(run, data=data, optim=optim, train=train), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 2 and np.isfinite(losses).all()
