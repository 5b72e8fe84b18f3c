import dataclasses

import ml_dtypes
import msgspec
import numpy as np
import pytest
import toy_records

from mvjax.config import schema
from mvjax.data import examples, image_features, images, mixture
from mvjax.data.records import dataset as dataset_lib

LIMITS = schema.LimitsConfig()
MADE = image_features.FeatureIdentity("a hash", toy_records.SIZE)
S, E = 5, 3


def encode(pixels):
    """Not an encoder, but a function of the pixels alone."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    return flat[:, 7 : 7 + S * E].reshape(-1, S, E)


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "visual"
    items = [toy_records.record(i, "visual") for i in range(7)]
    items += [msgspec.structs.replace(items[2], id="again")]
    dataset_lib.write(path, items, dataset_lib.Identity(codec="c", tokenizer="t"))
    return path


def test_every_image_once_and_by_its_number(dataset):
    index = image_features.write(dataset, encode, MADE, batch=3, limits=LIMITS, shard_bytes=100)
    assert (index.tokens, index.width) == (S, E) and len(index.features) > 1
    found = image_features.FeatureReader(dataset, expected=MADE)
    reader = dataset_lib.RecordReader(dataset, expected=None)
    numbers = {reader.stored(i).image for i in range(len(reader))}
    assert numbers == set(range(7))
    for i in range(len(reader)):
        row = reader.stored(i)
        pixels = images.resize_square(images.decode(reader.image(row.image), limits=LIMITS), 16)
        wanted = encode(pixels[None])[0].astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(found[row.image], wanted)
    assert image_features.fresh(dataset, MADE)


def test_others_are_refused(dataset):
    with pytest.raises(FileNotFoundError, match="mvjax data features"):
        image_features.FeatureReader(dataset, expected=MADE)
    assert not image_features.fresh(dataset, MADE)
    image_features.write(dataset, encode, MADE, batch=4, limits=LIMITS)
    with pytest.raises(ValueError, match="image_size=32"):
        image_features.FeatureReader(dataset, expected=image_features.FeatureIdentity("a hash", 32))
    items = [toy_records.record(i, "visual") for i in range(3)]
    dataset_lib.write(dataset, items, dataset_lib.Identity(codec="c", tokenizer="t"))
    with pytest.raises(ValueError, match="of other images"):
        image_features.FeatureReader(dataset, expected=MADE)
    image_features.index_path(dataset).write_text("{")
    with pytest.raises(ValueError, match="expected an index of features"):
        image_features.FeatureReader(dataset, expected=MADE)


def test_an_interrupted_writing_leaves_the_old_features(dataset):
    image_features.write(dataset, encode, MADE, batch=4, limits=LIMITS)
    before = sorted(path.name for path in dataset.parent.iterdir())

    def fails(pixels):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_features.write(dataset, fails, MADE, batch=4, limits=LIMITS)
    assert sorted(path.name for path in dataset.parent.iterdir()) == before
    assert image_features.fresh(dataset, MADE)


@pytest.fixture
def run(tmp_path):
    codec = tmp_path / "codec"
    codec.write_text("a codec")
    siglip = tmp_path / "siglip.npz"
    np.savez(siglip, x=np.zeros(2))
    run = toy_records.make_config(tmp_path / "records", codec)
    mixture.ensure_records(run.data)
    frozen = dataclasses.replace(run.frozen, siglip=str(siglip), moshi=str(siglip))
    model = dataclasses.replace(
        run.model, siglip=schema.SiglipConfig(image_size=16, patch=4, width=E)
    )
    run = dataclasses.replace(run, frozen=frozen, model=model)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, features=True))


def test_batches_hold_features_in_place_of_pixels(run):
    def encode(pixels):
        return pixels.reshape(len(pixels), 16, -1)[:, :, :E].astype(np.float32)

    with pytest.raises(FileNotFoundError, match="mvjax data features"):
        mixture.batches(run)[0]
    made_with = image_features.made_with(run.frozen, run.model)
    for name in ("visual", "text"):
        path = examples.record_path(run.data, name)
        image_features.write(path, encode, made_with, batch=8, limits=LIMITS)
    off = dataclasses.replace(run, data=dataclasses.replace(run.data, features=False))
    for found, plain in zip(mixture.batches(run)[3], mixture.batches(off)[3], strict=True):
        assert found.images.dtype == ml_dtypes.bfloat16
        assert found.images.shape == (len(found.codes), 16, E)
        np.testing.assert_array_equal(found.images, encode(plain.images).astype(ml_dtypes.bfloat16))
        np.testing.assert_array_equal(found.codes, plain.codes)
        np.testing.assert_array_equal(found.has_image, plain.has_image)
    none = dataclasses.replace(run, data=dataclasses.replace(run.data, speech_rows=0, speech=()))
    assert mixture.batches(none)[0].speech.images.shape == (0, 16, E)
