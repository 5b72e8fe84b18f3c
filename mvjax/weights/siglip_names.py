"""The Hugging Face tensor names of the SigLIP encoder, as rules over big_vision's scanned tree."""

from __future__ import annotations

from mvjax.config import schema
from mvjax.weights import rules

_ATTENTION = "MultiHeadDotProductAttention_0"
_TOP = (
    # HWIO -> OIHW
    ("embedding/kernel", "embeddings.patch_embedding.weight", "high wide 3 E -> E 3 high wide"),
    ("embedding/bias", "embeddings.patch_embedding.bias", "E"),
    ("pos_embedding", "embeddings.position_embedding.weight", "1 S E -> S E"),
    ("Transformer/encoder_norm/scale", "post_layernorm.weight", "E"),
    ("Transformer/encoder_norm/bias", "post_layernorm.bias", "E"),
)
_LAYER = (
    ("LayerNorm_0/scale", "layer_norm1.weight", "image_layer E"),
    ("LayerNorm_0/bias", "layer_norm1.bias", "image_layer E"),
    (f"{_ATTENTION}/query/kernel", "self_attn.q_proj.weight", "image_layer E n h -> (n h) E"),
    (f"{_ATTENTION}/query/bias", "self_attn.q_proj.bias", "image_layer n h -> (n h)"),
    (f"{_ATTENTION}/key/kernel", "self_attn.k_proj.weight", "image_layer E n h -> (n h) E"),
    (f"{_ATTENTION}/key/bias", "self_attn.k_proj.bias", "image_layer n h -> (n h)"),
    (f"{_ATTENTION}/value/kernel", "self_attn.v_proj.weight", "image_layer E n h -> (n h) E"),
    (f"{_ATTENTION}/value/bias", "self_attn.v_proj.bias", "image_layer n h -> (n h)"),
    (f"{_ATTENTION}/out/kernel", "self_attn.out_proj.weight", "image_layer n h E -> E (n h)"),
    (f"{_ATTENTION}/out/bias", "self_attn.out_proj.bias", "image_layer E"),
    ("LayerNorm_1/scale", "layer_norm2.weight", "image_layer E"),
    ("LayerNorm_1/bias", "layer_norm2.bias", "image_layer E"),
    ("MlpBlock_0/Dense_0/kernel", "mlp.fc1.weight", "image_layer E f -> f E"),
    ("MlpBlock_0/Dense_0/bias", "mlp.fc1.bias", "image_layer f"),
    ("MlpBlock_0/Dense_1/kernel", "mlp.fc2.weight", "image_layer f E -> E f"),
    ("MlpBlock_0/Dense_1/bias", "mlp.fc2.bias", "image_layer E"),
)


def sizes(config: schema.SiglipConfig) -> dict[str, int]:
    """Returns {axis name in these rules: size}."""
    return {
        "E": config.width,
        "high": config.patch,
        "wide": config.patch,
        "S": config.tokens,
        "image_layer": config.layers,
        "n": config.heads,
        "h": config.width // config.heads,
        "f": config.hidden,
    }


def siglip_rules(*, ours: str, upstream: str) -> list[rules.Rule]:
    """Returns the table of reference section 3.4, behind prefixes of our paths and of upstream's names."""
    blocks, layers = f"{ours}Transformer/encoderblock/", upstream + "encoder.layers.{image_layer}."
    return [
        *rules.table(_TOP, ours=ours, upstream=upstream),
        *rules.table(_LAYER, ours=blocks, upstream=layers),
    ]
