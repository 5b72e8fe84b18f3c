"""The position grid at another resolution: big_vision's maths, written down a second time."""

import numpy as np
import pytest

from mvjax.config import schema
from mvjax.weights import positions


def bilinear(table: np.ndarray, old: int, new: int) -> np.ndarray:
    """Corner on corner: new point i lies at i (old - 1) / (new - 1) of the old grid."""
    at = np.arange(new) * (old - 1) / (new - 1)
    low = np.minimum(np.floor(at).astype(int), old - 2)
    weight = (at - low)[:, None]
    grid = table.reshape(old, old, -1)
    rows = grid[low] * (1 - weight[..., None]) + grid[low + 1] * weight[..., None]
    columns = rows[:, low] * (1 - weight) + rows[:, low + 1] * weight
    return columns.reshape(new * new, -1)


@pytest.mark.parametrize("old, new", [(8, 5), (5, 8), (16, 32), (32, 16), (7, 7)])
def test_resampling_is_bilinear_corner_on_corner(old, new):
    table = np.random.default_rng(0).normal(size=(old * old, 3)).astype(np.float32)
    found = positions.resample(table, new * new)
    assert found.shape == (new * new, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, bilinear(table, old, new), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(found[[0, new - 1, -1]], table[[0, old - 1, -1]])


def test_a_table_of_the_right_size_is_left_alone(caplog):
    config = schema.SiglipConfig(width=3, patch=4, image_size=20)
    table = np.zeros((1, 25, 3), np.float32)
    assert positions.fit(table, config, place="x") is table
    assert not caplog.records


def test_a_part_of_a_resampled_table(caplog):
    config = schema.SiglipConfig(width=3, patch=4, image_size=20)
    table = np.random.default_rng(0).normal(size=(1, 64, 3)).astype(np.float32)
    view = positions.fit(table, config, place="a.npz")
    assert view.shape == (1, 25, 3)
    whole = positions.resample(table[0], 25)
    np.testing.assert_array_equal(view[(slice(None), slice(3, 9), slice(1, 3))][0], whole[3:9, 1:])
    assert "a.npz: positions were resampled from images of 32 pixels (8 x 8)" in caplog.text
