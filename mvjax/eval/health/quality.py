"""Audio quality by DNSMOS (P.835 and P.808), whose weights are in the wheel `speechmos`.

An estimate of opinions about noise suppression, from 1 to 5: it compares the voices of one table. The
paper's MOSNet is another network on another scale: the two are never compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mvjax import types
from mvjax.data.speech import spoken

NOTE = "DNSMOS is not the paper's MOSNet: another network on another scale; do not compare their numbers"
MODULES = (
    "speechmos",
    "onnxruntime",
    "librosa",
    "requests",
)  # speechmos declares none of the others
_RATE = 16_000
_NAMES = {
    "overall": "ovrl_mos",
    "signal": "sig_mos",
    "background": "bak_mos",
    "p808": "p808_mos",
}


def dnsmos(clips: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns the mean scores of clips (float32 at 24 kHz, speech alone), and how many there are.

    All clips are one recording, of which the network hears 9 s at a time: short ones need no repeating.
    """
    speech = np.concatenate([np.zeros(0, np.float32), *clips])
    if not len(speech):
        return {"clips": 0, "seconds": 0.0, **dict.fromkeys(_NAMES)}
    from speechmos import dnsmos as network

    audio = spoken.resample(speech[None], types.SAMPLE_RATE, to=_RATE)[0]
    scores = network.run(np.clip(audio, -1, 1), _RATE)
    return {
        "clips": len(clips),
        "seconds": round(len(speech) / types.SAMPLE_RATE, 1),
        **{ours: round(float(scores[theirs]), 3) for ours, theirs in _NAMES.items()},
    }
