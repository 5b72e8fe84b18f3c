"""Which frames see the image: by hand, whole and frame by frame, with and without `has_image`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model as small

from mvjax.nn import model as model_lib
from mvjax.nn import scopes

TOKENS = jnp.array([[0, 0, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    ("start", "end", "first", "second"),
    [
        ("boi", "end", "00111111", "11111111"),
        ("boi", "eoi", "00111000", "11000000"),
        ("boi", 4, "00111100", "11110000"),
        ("eoi", "end", "00000111", "00111111"),
        ("eoi", 2, "00000110", "00110000"),
        ("eoi", 0, "00000000", "00000000"),
    ],
)
def test_scopes_around_image_tokens(start, end, first, second):
    found = np.asarray(scopes.around_image(TOKENS, start=start, end=end)).astype(int)
    assert ["".join(map(str, row)) for row in found] == [first, second]


def test_a_scope_without_frames_is_refused():
    with pytest.raises(ValueError, match="leaves no frame"):
        scopes.around_image(TOKENS, start="eoi", end="eoi")


@pytest.mark.parametrize("fields", [{"start": -1}, {"frames": -2}])
def test_negative_numbers_are_refused(fields):
    with pytest.raises(ValueError, match="must be 0 or more"):
        scopes.Scope(**fields)


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
    config = small.with_cross_attention(scope=scope)
    mask = np.array([[c == "1" for c in frames]] * small.B)
    codes, kv = small.codes(), small.apply("look", small.pixels())
    want, gates = small.apply("hidden", codes, kv, mask)
    found, opened = small.apply("hidden", codes, kv, config=config, weights=small.params())
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(opened, gates)
    np.testing.assert_array_equal(np.all(np.asarray(opened) > 0, axis=0), mask)
    rows = np.array([True, False])
    found, opened = small.apply("hidden", codes, kv, rows, config=config, weights=small.params())
    np.testing.assert_array_equal(found[0], want[0])
    assert not np.any(opened[:, 1])


def test_frame_by_frame_the_position_counts():
    config = small.with_cross_attention(scope=scopes.Scope(start=2, frames=5))
    codes, kv = small.codes(), small.apply("look", small.pixels())
    weights = small.params()
    want, _ = small.apply("hidden", codes, kv, config=config, weights=weights)
    model = model_lib.VisionSpeech(config)
    step = jax.jit(
        lambda cache, ids: model.apply({"params": weights}, cache, ids, kv, None, method="step")
    )
    cache = model.init_cache(small.B)
    for t in range(small.T):
        cache, z, _, gate = step(cache, codes[:, :, t])
        np.testing.assert_allclose(z, want[:, t], atol=1e-5)
        assert np.all((gate > 0) == (2 <= t < 7))
