"""A toy model whose widths fill the groups of every quantization."""

import numpy as np

from mvjax import gates, tree
from mvjax.config import schema
from mvjax.weights import kyutai, rules

# B=1 S=9 D=512 E=64 F=128 N=4 H=128 L=2 K=6 Q=3 V=37 C=13 G=64; depformer d=64 n=2 h=32 f=192 L=2
CONFIG = schema.ModelConfig(
    backbone=schema.BackboneConfig(width=512, layers=2, heads=4, hidden=128, context=40),
    depformer=schema.DepformerConfig(width=64, layers=2, heads=2, hidden=192),
    siglip=schema.SiglipConfig(width=64, layers=2, heads=2, hidden=28, patch=4, image_size=12),
    cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=64)),
    text_vocab=37,
    audio_vocab=13,
    codebooks_out=3,
    delays=(0, 0, 1, 1, 0, 1),
)


def params(config=CONFIG, *, seed=0, dtype=np.float32):
    """Random weights that keep activations near 1."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, shape in rules.leaf_shapes(kyutai.vis_rules(config), kyutai.sizes(config)).items():
        center = 1.0 if path.endswith(("scale", "gate_alpha")) else 0.0
        size = 0.2 if "norm" in path else 0.8 * config.backbone.width**-0.5
        flat[path] = (center + size * rng.standard_normal(shape)).astype(dtype)
    return tree.unflatten(flat)
