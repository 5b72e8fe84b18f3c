"""Which frames see the image: by hand, whole and frame by frame, with and without `has_image`."""

import closeness
import jax.numpy as jnp
import numpy as np
import pytest
import stepping
import toy

from mvjax import scopes


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
    config = toy.with_cross_attention(scope=scope)
    mask = np.array([[c == "1" for c in frames]] * toy.B)
    codes, kv = toy.codes(), toy.apply("image_kv", toy.pixels())
    want, gates = toy.apply("hidden", codes, kv, mask)
    z, gate_means = toy.apply("hidden", codes, kv, config=config, weights=toy.params())
    np.testing.assert_array_equal(z, want)
    np.testing.assert_array_equal(gate_means, gates)
    np.testing.assert_array_equal(np.all(np.asarray(gate_means) > 0, axis=0), mask)
    rows = np.array([True, False])
    z, gate_means = toy.apply("hidden", codes, kv, rows, config=config, weights=toy.params())
    np.testing.assert_array_equal(z[0], want[0])
    assert not np.any(gate_means[:, 1])


def test_frame_by_frame_the_position_counts():
    config = toy.with_cross_attention(scope=scopes.Scope(start=2, frames=5))
    codes, kv = toy.codes(), toy.apply("image_kv", toy.pixels())
    weights = toy.params()
    want, _ = toy.apply("hidden", codes, kv, config=config, weights=weights)
    sees = np.tile(config.cross_attention.scope(jnp.arange(toy.T)), (toy.B, 1))
    for t, out in enumerate(stepping.backbone(codes, kv, sees, weights=weights)):
        closeness.assert_close(out.z, want[:, t])
        assert np.all((out.gate > 0) == (2 <= t < 7))
