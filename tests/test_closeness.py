"""Bounds of comparisons: a share of the largest magnitude; a margin narrows those that are about float32."""

import closeness
import numpy as np
import pytest


@pytest.mark.parametrize(("off", "share"), [(9e-5, 1e-5), (9e-4, 1e-4)])
def test_the_bound_is_a_share_of_the_largest(off, share):
    want = np.array([0.0, 1e-3, 10.0])
    closeness.assert_close(want + off, want, share)
    with pytest.raises(AssertionError, match="logits"):
        closeness.assert_close(want + 2 * off, want, share, where="logits")
    with pytest.raises(AssertionError):
        closeness.assert_close(want[:1], want)  # numpy would repeat it


def test_a_margin_narrows_bounds_on_float32_alone(monkeypatch):
    monkeypatch.setattr(np.testing, "assert_allclose", np.testing.assert_allclose)  # put back
    want = np.full(3, 10.0)
    closeness.tighten(1)
    closeness.assert_close(want + 9e-5, want)
    closeness.tighten(5)
    closeness.assert_close(want + 1e-5, want)
    np.testing.assert_allclose(want + 0.9, want, rtol=0.1)  # of bfloat16, or of statistics
    for rtol, atol in ((1e-5, 0.0), (0.0, 1e-4)):
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(want + 9e-5, want, rtol=rtol, atol=atol)
