"""The Hugging Face tensor names of the SigLIP encoder, as rules over big_vision's scanned tree."""

from __future__ import annotations

from mvjax.config import schema
from mvjax.weights import rules

_BLOCK = "Transformer/encoderblock"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_MLP = f"{_BLOCK}/MlpBlock_0"


def sizes(config: schema.SiglipConfig) -> dict[str, int]:
    """Returns {axis name in these rules: size}."""
    return {
        "E": config.width,
        "patch": config.patch,
        "patch_": config.patch,
        "S": config.tokens,
        "image_layer": config.layers,
        "n": config.heads,
        "h": config.width // config.heads,
        "f": config.hidden,
    }


def siglip_rules(*, ours: str, upstream: str) -> list[rules.Rule]:
    """Returns the table of reference section 3.4.

    Args:
      ours: prefix of our paths, such as `image/encoder/`.
      upstream: prefix of the upstream names, such as `image_prefix.enc.model.`.
    """
    layer = "encoder.layers.{image_layer}."
    table = [
        # HWIO -> OIHW
        (
            "embedding/kernel",
            "embeddings.patch_embedding.weight",
            "patch patch_ 3 E -> E 3 patch patch_",
        ),
        ("embedding/bias", "embeddings.patch_embedding.bias", "E"),
        ("pos_embedding", "embeddings.position_embedding.weight", "1 S E -> S E"),
        (
            f"{_ATTENTION}/out/kernel",
            f"{layer}self_attn.out_proj.weight",
            "image_layer n h E -> E (n h)",
        ),
        (f"{_ATTENTION}/out/bias", f"{layer}self_attn.out_proj.bias", "image_layer E"),
        (f"{_MLP}/Dense_0/kernel", f"{layer}mlp.fc1.weight", "image_layer E f -> f E"),
        (f"{_MLP}/Dense_0/bias", f"{layer}mlp.fc1.bias", "image_layer f"),
        (f"{_MLP}/Dense_1/kernel", f"{layer}mlp.fc2.weight", "image_layer f E -> E f"),
        (f"{_MLP}/Dense_1/bias", f"{layer}mlp.fc2.bias", "image_layer E"),
        ("Transformer/encoder_norm/scale", "post_layernorm.weight", "E"),
        ("Transformer/encoder_norm/bias", "post_layernorm.bias", "E"),
    ]
    for path, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        table += [
            (
                f"{_ATTENTION}/{path}/kernel",
                f"{layer}self_attn.{name}.weight",
                "image_layer E n h -> (n h) E",
            ),
            (
                f"{_ATTENTION}/{path}/bias",
                f"{layer}self_attn.{name}.bias",
                "image_layer n h -> (n h)",
            ),
        ]
    for k in (0, 1):
        table += [
            (f"{_BLOCK}/LayerNorm_{k}/scale", f"{layer}layer_norm{k + 1}.weight", "image_layer E"),
            (f"{_BLOCK}/LayerNorm_{k}/bias", f"{layer}layer_norm{k + 1}.bias", "image_layer E"),
        ]
    return [rules.Rule(ours + path, upstream + name, axes) for path, name, axes in table]
