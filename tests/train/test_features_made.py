import dataclasses

import jax
import numpy as np
import pytest

from mvjax import config as config_lib
from mvjax import tiny
from mvjax.data import features, images, records, rows
from mvjax.nn import model as model_lib
from mvjax.tiny import world
from mvjax.train import features as make_lib
from mvjax.weights import big_vision


@pytest.fixture
def run(tmp_path):
    data = config_lib.DataConfig(
        root=str(tmp_path), speech=(), speechless=(config_lib.Source("text"),), p_concat=0.0
    )
    run = config_lib.Config(frozen=tiny.FROZEN, model=tiny.MODEL, codec=tiny.CODEC, data=data)
    turns = (records.Turn("user", "what digit is this"), records.Turn("assistant", "a seven"))
    items = [
        records.Record(f"r{i}", ("digit",), turns, image=images.encode_png(scene.image))
        for i, scene in enumerate(world.scenes("train", 5, 0))
    ]
    records.write(rows.record_path(data, "text"), items, records.Identity())
    return run


def test_features_are_those_of_the_step(run):
    told = []
    made = make_lib.make(run, progress=lambda *seen: told.append(seen))
    assert set(made) == {"text"} and told[-1] == ("text", 5, 5)
    dataset = rows.record_path(run.data, "text")
    reader = records.Reader(dataset, expected=None)
    found = features.Reader(dataset, expected=features.made_with(run.frozen, run.model))
    params = {"image": {"encoder": big_vision.load_siglip(run.frozen.siglip, run.model.siglip)}}
    model = model_lib.VisionSpeech(run.model)
    encode = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode_images"))
    for i in range(5):
        number = reader.row(i).image
        picture = images.decode(reader.image(number), limits=run.data.limits)
        pixels = images.normalise(images.resize_square(picture, 48))[None]
        wanted = np.asarray(encode(params, pixels))[0]
        np.testing.assert_allclose(
            found[number].astype(np.float32), wanted, rtol=2**-8, atol=1e-5
        )  # bfloat16
    assert make_lib.make(run) == {"text": None}


def test_another_size_is_made_again(run):
    make_lib.make(run)
    siglip = dataclasses.replace(run.model.siglip, image_size=72)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, siglip=siglip))
    index = make_lib.make(other)["text"]
    assert index is not None and index.tokens == 36
