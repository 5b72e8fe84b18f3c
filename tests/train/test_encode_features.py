import dataclasses

import jax
import numpy as np
import pytest

from mvjax.config import schema
from mvjax.data import examples, image_features, images
from mvjax.data.records import dataset as dataset_lib
from mvjax.digits import frozen_models, world
from mvjax.nn import model as model_lib
from mvjax.train import encode_features
from mvjax.weights import big_vision


@pytest.fixture
def run(tmp_path):
    data = schema.DataConfig(
        root=str(tmp_path), speech=(), speechless=(schema.Source("text"),), p_concat=0.0
    )
    run = schema.Config(
        frozen=frozen_models.FROZEN, model=frozen_models.MODEL, codec=frozen_models.CODEC, data=data
    )
    turns = (
        dataset_lib.Turn("user", "what digit is this"),
        dataset_lib.Turn("assistant", "a seven"),
    )
    items = [
        dataset_lib.Record(f"r{i}", ("digit",), turns, image=images.encode_png(scene.image))
        for i, scene in enumerate(world.scenes("train", 5, 0))
    ]
    dataset_lib.write(examples.record_path(data, "text"), items, dataset_lib.Identity())
    return run


def test_features_are_those_of_the_step(run):
    told = []
    made = encode_features.make(run, progress=lambda *seen: told.append(seen))
    assert set(made) == {"text"} and told[-1] == ("text", 5, 5)
    dataset = examples.record_path(run.data, "text")
    reader = dataset_lib.RecordReader(dataset, expected=None)
    found = image_features.FeatureReader(
        dataset, expected=image_features.made_with(run.frozen, run.model)
    )
    params = {"image": {"encoder": big_vision.load_siglip(run.frozen.siglip, run.model.siglip)}}
    model = model_lib.VisionSpeech(run.model)
    encode = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode_images"))
    for i in range(5):
        number = reader.stored(i).image
        picture = images.decode(reader.image(number), limits=run.data.limits)
        pixels = images.normalize(images.resize_square(picture, 48))[None]
        wanted = np.asarray(encode(params, pixels))[0]
        np.testing.assert_allclose(
            found[number].astype(np.float32), wanted, rtol=2**-8, atol=1e-5
        )  # bfloat16
    assert encode_features.make(run) == {"text": None}


def test_another_size_is_made_again(run):
    encode_features.make(run)
    siglip = dataclasses.replace(run.model.siglip, image_size=72)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, siglip=siglip))
    index = encode_features.make(other)["text"]
    assert index is not None and index.tokens == 36
