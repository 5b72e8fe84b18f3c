"""DNSMOS tells clean speech from noisy speech; without the extra a test says what is missing."""

import numpy as np
import pytest

from mvjax.commands import extras
from mvjax.dialogues import speech
from mvjax.eval.health import quality


@pytest.mark.filterwarnings("ignore")  # of the imports: numba's, and librosa's lazy ones
def test_noise_lowers_the_score():
    missing = [module for module in quality.MODULES if not extras.installed(module)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (the extra [quality])")
    clip = speech.speak(
        "the picture shows a red one at the bottom left", speech.Voice("en-us")
    ).samples
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32)
    clean, noisy = quality.dnsmos([clip] * 4), quality.dnsmos([clip + noise] * 4)
    assert clean["clips"] == 4 and clean["seconds"] == pytest.approx(
        4 * len(clip) / 24_000, abs=0.1
    )
    for name in ("overall", "background"):
        assert 1 < noisy[name] < clean[name] - 0.3 and clean[name] < 5
    assert quality.dnsmos([])["overall"] is None
