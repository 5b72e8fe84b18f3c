"""Shapes and dtypes of a global batch, known without any data."""

from __future__ import annotations

from typing import Any

import jax
import ml_dtypes
import numpy as np

from mvjax import types
from mvjax.config import schema

FEATURE_DTYPE = np.dtype(ml_dtypes.bfloat16)  # of image features


def batch_spec(config: schema.Config, *, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Returns a `types.Batch` of ShapeDtypeStructs: what a step of this config is given."""
    data, model = config.data, config.model
    side = model.siglip.image_size
    image, image_dtype = (side, side, 3), np.dtype(np.uint8)
    if data.features:
        image, image_dtype = (model.siglip.tokens, model.siglip.width), FEATURE_DTYPE

    def part(rows: int, frames: int) -> types.Part:
        def array(dtype: Any, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

        return types.Part(
            codes=array(np.int32, model.codebooks, frames),
            loss_mask=array(np.bool_, frames),
            images=array(image_dtype, *image),
            has_image=array(np.bool_, *((frames,) if data.small_talk_image == "absent" else ())),
        )

    return types.Batch(
        speech=part(data.speech_rows, data.speech_frames),
        speechless=part(data.speechless_rows, data.speechless_tokens),
    )
