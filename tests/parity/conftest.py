"""Records the result of each comparison, for the table of `tools/check_upstream.py`."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

REPORT = "MVJAX_PARITY_REPORT"  # a file to which one JSON line a comparison is added


class Compare:
    """Compares arrays and asserts; `compare(what, actual, want, share)`, `within(..)` or `same(..)`."""

    def __init__(self, check: str) -> None:
        self.check = check

    def __call__(self, what: str, actual, want, share: float) -> None:
        """Numbers: no difference is over a share of the largest magnitude wanted, or of 1 if that is more."""
        self.within(what, actual, want, share * max(1.0, float(np.abs(np.asarray(want)).max())))

    def within(self, what: str, actual, want, atol: float) -> None:
        """Numbers: the largest absolute difference is at most `atol`."""
        actual, want = np.asarray(actual, np.float64), np.asarray(want, np.float64)
        assert actual.shape == want.shape, (what, actual.shape, want.shape)
        error = float(np.abs(actual - want).max())
        # also catches NaN, and zeros that agree with zeros
        self._judge(what, f"{error:.1e}", f"{atol:.0e}", error <= atol and want.any())

    def same(self, what: str, actual, want) -> None:
        """Tokens or bits: none differs."""
        actual, want = np.asarray(actual), np.asarray(want)
        assert actual.shape == want.shape, (what, actual.shape, want.shape)
        differing = int(np.sum(actual != want))
        self._judge(what, f"{differing} of {actual.size} differ", "0", differing == 0)

    def _judge(self, what: str, error: str, allowed: str, passed) -> None:
        passed = bool(passed)
        line = {"check": self.check, "what": what, "error": error, "allowed": allowed}
        if path := os.environ.get(REPORT):
            with Path(path).open("a") as file:
                file.write(json.dumps(line | {"passed": passed}) + "\n")
        assert passed, f"{what}: {error}, allowed {allowed}"


@pytest.fixture
def compare(request) -> Compare:
    """Named after the test."""
    return Compare(f"{request.path.stem.removeprefix('test_')}: {request.node.name[5:]}")
