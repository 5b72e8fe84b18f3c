"""How near two computations in float32 must be: a share of the largest magnitude compared, on any processor.

Sums differ by the instructions that a processor has, in proportion to the largest number that was added.
"""

import numpy as np

SIMPLE = 1e-5  # one module, or the same modules in another order
COMPOSED = 1e-4  # many modules, one after the other
ROUNDING = 1e-3  # wider bounds, of the largest magnitude, are not about float32

_allclose = np.testing.assert_allclose


def assert_close(got, want, share: float = SIMPLE, *, where: str = "") -> None:
    """No element is off by more than a share of the largest magnitude in `want`, or of 1 if that is more."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, (where, got.shape, want.shape)
    largest = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=share * largest, err_msg=where)


def tighten(factor: float) -> None:
    """From now on numpy allows `factor` times less, wherever a bound is about float32: `pytest --margin`."""

    def assert_allclose(actual, desired, rtol=1e-7, atol=0, **how):
        largest = np.abs(np.asarray(desired, np.float64)).max(initial=0)
        if atol + rtol * largest < ROUNDING * largest:
            rtol, atol = rtol / factor, atol / factor
        _allclose(actual, desired, rtol, atol, **how)

    np.testing.assert_allclose = assert_allclose if factor != 1 else _allclose
