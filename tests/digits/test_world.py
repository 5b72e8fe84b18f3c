"""The digits world's images: splits, determinism, and that facts can be read off the pixels."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvjax import files
from mvjax.data import images
from mvjax.digits import frozen_models, world
from mvjax.nn import siglip
from mvjax.weights import big_vision


def test_splits_share_no_scan_and_cover_all():
    train, test = world.scan_indices("train"), world.scan_indices("test")
    assert not set(train) & set(test)
    assert len(train) + len(test) == len(world.labels()) == 1797
    shares = [(world.labels()[test] == d).sum() / (world.labels() == d).sum() for d in range(10)]
    np.testing.assert_allclose(shares, 0.2, atol=0.004)


def test_scenes_are_a_pure_function_of_the_seed_and_the_index():
    three, five = world.scenes("test", 3, seed=7), world.scenes("test", 5, seed=7)
    other, train = world.scenes("test", 3, seed=8), world.scenes("train", 3, seed=7)
    for a, b in zip(three, five, strict=False):
        assert (a.id, a.facts, a.scan) == (b.id, b.facts, b.scan)
        np.testing.assert_array_equal(a.image, b.image)
    assert all((a.image != b.image).any() for a, b in zip(three, other, strict=True))
    assert len({scene.id for scene in five + other + train}) == 11


def test_scenes_use_scans_of_their_split_and_every_fact():
    for split in ("train", "test"):
        found = world.scenes(split, 300, seed=1)
        assert {scene.scan for scene in found} <= set(world.scan_indices(split))
        assert all(world.labels()[scene.scan] == scene.facts.digit for scene in found)
        assert {scene.facts.digit for scene in found} == set(range(10))
        assert {scene.facts.colour for scene in found} == set(world.COLOURS)
        assert {scene.facts.place for scene in found} == set(world.PLACES)


def test_colour_and_place_can_be_read_off_the_pixels():
    for scene in world.scenes("test", 200, seed=2):
        pixels = scene.image.astype(np.float32)
        ink = np.maximum(pixels.max(-1) - 60, 0)
        rows, columns = (np.arange(48) @ ink.sum(axis) / ink.sum() for axis in (1, 0))
        centers = {place: np.add(corner, 11.5) for place, corner in world.PLACES.items()}
        nearest = min(centers, key=lambda p: np.abs(centers[p] - (rows, columns)).sum())
        assert nearest == scene.facts.place, scene.id
        hue = (ink[..., None] ** 2 * pixels).sum((0, 1))
        hue /= np.linalg.norm(hue)
        likeness = {c: np.dot(hue, rgb) / np.linalg.norm(rgb) for c, rgb in world.COLOURS.items()}
        assert max(likeness, key=likeness.__getitem__) == scene.facts.colour, scene.id


def test_the_background_is_dark_and_the_digit_bright():
    scene = world.scenes("train", 1, seed=0)[0]
    assert scene.image.shape == (48, 48, 3) and scene.image.dtype == np.uint8
    assert np.median(scene.image) < 40 and scene.image.max() > 150


def test_wrong_facts_are_refused():
    facts = world.Facts(digit=3, colour="red", place="middle")
    scan = int(np.flatnonzero(world.labels() == 4)[0])
    with pytest.raises(ValueError, match=f"scan {scan} shows 4.*facts say 3"):
        world.draw(scan, facts, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"Facts\.colour.*'orange'"):
        dataclasses.replace(facts, colour="orange")
    with pytest.raises(ValueError, match=r"Facts\.digit.*10"):
        dataclasses.replace(facts, digit=10)


def test_importing_the_world_leaves_scikit_learn_alone():
    code = "import sys, mvjax.digits.world; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_shipped_encoder_tells_the_facts_of_held_out_digits():
    """By least squares on mean-pooled tokens; `tools/make_tiny_siglip.py` prints finer figures."""
    assert files.resolve(frozen_models.FROZEN.siglip).stat().st_size < 1.5e6
    params = big_vision.load_siglip(frozen_models.FROZEN.siglip, frozen_models.MODEL.siglip)
    encode = jax.jit(siglip.Siglip(frozen_models.MODEL.siglip).apply)

    def tokens(scenes: list[world.Scene]) -> np.ndarray:
        pixels = jnp.asarray(images.normalize(np.stack([scene.image for scene in scenes])))
        x = np.asarray(encode({"params": params}, pixels).mean(1))
        return np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)

    train, test = world.scenes("train", 800, seed=0), world.scenes("test", 400, seed=0)
    x, x_test = tokens(train), tokens(test)
    floors = {"digit": 0.95, "colour": 0.99, "place": 0.99}
    for fact, floor in floors.items():
        names = sorted({getattr(scene.facts, fact) for scene in train})
        y, y_test = (
            np.array([names.index(getattr(scene.facts, fact)) for scene in scenes])
            for scenes in (train, test)
        )
        kernel = np.linalg.lstsq(x, np.eye(len(names))[y], rcond=None)[0]
        assert ((x_test @ kernel).argmax(1) == y_test).mean() >= floor, fact
