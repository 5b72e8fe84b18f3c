"""The embedded default: sizes and files of the digits world's small frozen models.

The assets are made by `tools/make_tiny.py` and load through the same code as the released weights.
"""

from __future__ import annotations

from mvjax import gates
from mvjax.config import schema

MODEL = schema.ModelConfig(
    backbone=schema.BackboneConfig(width=192, layers=4, heads=4, hidden=528, context=250),
    depformer=schema.DepformerConfig(width=64, layers=2, heads=2, hidden=176),
    siglip=schema.SiglipConfig(width=64, layers=3, heads=4, hidden=128, patch=12, image_size=48),
    cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=24)),
    # tools/make_tiny_moshi.py trained it with text-only rows in which audio had no start
    stream=schema.StreamConfig(absent_start="nothing"),
    text_vocab=204,
    audio_vocab=256,
)

CODEC = schema.MimiConfig(
    filters=16,
    ratios=(4, 5, 6, 8),
    latent=128,
    layers=2,
    heads=4,
    hidden=256,
    context=25,
    codes=256,
    code_width=32,
    stored_codebooks=8,
)

FROZEN = schema.FrozenFiles(
    moshi="package:mvjax.digits/assets/moshi.safetensors",
    siglip="package:mvjax.digits/assets/siglip.npz",
    codec="package:mvjax.digits/assets/mimi.safetensors",
    tokenizer="package:mvjax.digits/assets/tokenizer.model",
)
