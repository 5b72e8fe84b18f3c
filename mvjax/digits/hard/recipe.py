"""The hard digits world's training run; `experiments/digits_hard.py` and the sweeps use these values."""

from __future__ import annotations

import dataclasses

from mvjax.config import schema
from mvjax.digits import recipe
from mvjax.digits.hard import frozen_models, records


def digits_hard() -> schema.Config:
    """Returns a run that is short on purpose: designs are to differ, not to reach the ceiling.

    What is not named here is as in the digits world.
    """
    easy = recipe.digits()
    return dataclasses.replace(
        easy,
        frozen=frozen_models.FROZEN,
        data=dataclasses.replace(
            easy.data,
            root="data/digits-hard",
            prepare=records.prepare,
            speech_rows=4,
            speechless_rows=20,
            speech_frames=96,
        ),
        train=dataclasses.replace(easy.train, steps=300),
    )
