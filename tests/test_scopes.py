"""Which frames see the image: by hand, whole and frame by frame, with and without `has_image`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from mvjax import scopes
from mvjax.nn import model as model_lib

TOKENS = jnp.array([[0, 0, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]], bool)


AROUND = {
    "from boi": (scopes.AroundImage(), "00111111", "11111111"),
    "boi to eoi": (scopes.AroundImage(end="eoi"), "00111000", "11000000"),
    "4 from boi": (scopes.AroundImage(frames=4), "00111100", "11110000"),
    "from eoi": (scopes.AroundImage("eoi"), "00000111", "00111111"),
    "2 from eoi": (scopes.AroundImage("eoi", frames=2), "00000110", "00110000"),
    "none from eoi": (scopes.AroundImage("eoi", frames=0), "00000000", "00000000"),
}


@pytest.mark.parametrize("name", list(AROUND))
def test_scopes_around_image_tokens(name):
    scope, *want = AROUND[name]
    found = np.asarray(scope(TOKENS)).astype(int)
    assert ["".join(map(str, row)) for row in found] == want


@pytest.mark.parametrize("fields", [{"start": "eoi", "end": "eoi"}, {"end": "eoi", "frames": 2}])
def test_scopes_that_contradict_themselves_are_refused(fields):
    with pytest.raises(ValueError, match="end='eoi' is for start='boi' without frames"):
        scopes.AroundImage(**fields)


def test_the_model_is_told_where_its_image_tokens_are():
    config = toy.with_cross_attention(scope=scopes.AroundImage("boi", frames=4))
    weights = toy.params()
    tokens = np.zeros((toy.B, toy.T), bool)
    tokens[0, 2:4] = tokens[1, 6:] = True
    inside = np.zeros_like(tokens)
    inside[0, 2:6] = inside[1, 6:] = True
    codes, kv = toy.codes(), toy.apply("look", toy.pixels())
    want, _ = toy.apply("hidden", codes, kv, inside)
    tokens = jnp.asarray(tokens)
    run = {"config": config, "weights": weights}
    found, opened = toy.apply("hidden", codes, kv, **run, image_tokens=tokens)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(np.all(np.asarray(opened) > 0, axis=0), inside)
    told = {"depth_codebooks": 0, "image_tokens": tokens}
    output = toy.apply("__call__", codes, toy.pixels(), **run, **told)
    np.testing.assert_array_equal(np.all(np.asarray(output.gates) > 0, axis=0), inside)
    with pytest.raises(ValueError, match=r"AroundImage.*counts from image tokens in the row"):
        toy.apply("hidden", codes, kv, **run)
    cache = model_lib.VisionSpeech(config).init_cache(toy.B)
    with pytest.raises(ValueError, match=r"AroundImage.*counts from image tokens in the row"):
        toy.apply("step", cache, codes[:, :, 0], kv, None, **run)
    with pytest.raises(ValueError, match="image_tokens: of no use to Scope"):
        toy.apply("hidden", codes, kv, image_tokens=tokens)


@pytest.mark.parametrize("fields", [{"start": -1}, {"frames": -2}])
def test_negative_numbers_are_refused(fields):
    with pytest.raises(ValueError, match="must be 0 or more"):
        scopes.Scope(**fields)
    with pytest.raises(ValueError, match="must be 0 or more"):
        scopes.AroundImage(frames=-2)


SCOPES = {
    "start to end": (scopes.Scope(), "111111111"),
    "start, 3": (scopes.Scope(frames=3), "111000000"),
    "2 to end": (scopes.Scope(start=2), "001111111"),
    "2, 3": (scopes.Scope(start=2, frames=3), "001110000"),
    "past the end": (scopes.Scope(start=20), "000000000"),
    "nothing": (scopes.Scope(frames=0), "000000000"),
}


@pytest.mark.parametrize("name", list(SCOPES))
def test_a_scope_of_the_config_is_the_mask(name):
    scope, frames = SCOPES[name]
    config = toy.with_cross_attention(scope=scope)
    mask = np.array([[c == "1" for c in frames]] * toy.B)
    codes, kv = toy.codes(), toy.apply("look", toy.pixels())
    want, gates = toy.apply("hidden", codes, kv, mask)
    found, opened = toy.apply("hidden", codes, kv, config=config, weights=toy.params())
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(opened, gates)
    np.testing.assert_array_equal(np.all(np.asarray(opened) > 0, axis=0), mask)
    rows = np.array([True, False])
    found, opened = toy.apply("hidden", codes, kv, rows, config=config, weights=toy.params())
    np.testing.assert_array_equal(found[0], want[0])
    assert not np.any(opened[:, 1])


def test_frame_by_frame_the_position_counts():
    config = toy.with_cross_attention(scope=scopes.Scope(start=2, frames=5))
    codes, kv = toy.codes(), toy.apply("look", toy.pixels())
    weights = toy.params()
    want, _ = toy.apply("hidden", codes, kv, config=config, weights=weights)
    model = model_lib.VisionSpeech(config)
    step = jax.jit(
        lambda cache, ids: model.apply({"params": weights}, cache, ids, kv, None, method="step")
    )
    cache = model.init_cache(toy.B)
    for t in range(toy.T):
        cache, z, _, gate = step(cache, codes[:, :, t])
        np.testing.assert_allclose(z, want[:, t], atol=1e-5)
        assert np.all((gate > 0) == (2 <= t < 7))
