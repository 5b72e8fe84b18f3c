"""The hard digits world's frozen models: those of the digits world, but an encoder that has seen more.

`tools/make_hard_siglip.py` made it.
"""

from __future__ import annotations

import dataclasses

from mvjax.digits import frozen_models

MODEL = frozen_models.MODEL
CODEC = frozen_models.CODEC
FROZEN = dataclasses.replace(
    frozen_models.FROZEN, siglip="package:mvjax.digits/assets/siglip_hard.npz"
)
