"""Every tensor name of the released files, written down from their listings, once in each table."""

import functools
import itertools

import numpy as np
import pytest

from mvjax import tree
from mvjax.config import schema
from mvjax.train import load
from mvjax.weights import candle, hf_siglip, kyutai, mlx, rules, siglip_names

REAL = schema.ModelConfig()
LAYERS, DEPTH, STEPS = range(32), range(6), range(8)


def siglip_listing(prefix):
    E, F = 1152, 4304
    names = {
        "embeddings.patch_embedding.weight": (E, 3, 14, 14),
        "embeddings.patch_embedding.bias": (E,),
        "embeddings.position_embedding.weight": (1024, E),
        "post_layernorm.weight": (E,),
        "post_layernorm.bias": (E,),
    }
    for i, part in itertools.product(range(27), ("q", "k", "v", "out")):
        names[f"encoder.layers.{i}.self_attn.{part}_proj.weight"] = (E, E)
        names[f"encoder.layers.{i}.self_attn.{part}_proj.bias"] = (E,)
    for i in range(27):
        layer = f"encoder.layers.{i}."
        names |= {f"{layer}mlp.fc1.weight": (F, E), f"{layer}mlp.fc1.bias": (F,)}
        names |= {f"{layer}mlp.fc2.weight": (E, F), f"{layer}mlp.fc2.bias": (E,)}
        for k in (1, 2):
            names |= {f"{layer}layer_norm{k}.weight": (E,), f"{layer}layer_norm{k}.bias": (E,)}
    return {prefix + name: shape for name, shape in names.items()}


def base_listing():
    """moshika-pytorch-bf16."""
    names = {
        "text_emb.weight": (32001, 4096),
        "text_linear.weight": (32000, 4096),
        "out_norm.alpha": (1, 1, 4096),
        "depformer_text_emb.weight": (32001, 1024),
    }
    names |= {f"emb.{k}.weight": (2049, 4096) for k in range(16)}
    names |= {f"depformer_in.{k}.weight": (1024, 4096) for k in STEPS}
    names |= {f"depformer_emb.{k}.weight": (2049, 1024) for k in range(7)}
    names |= {f"linears.{k}.weight": (2048, 1024) for k in STEPS}
    for i in LAYERS:
        layer = f"transformer.layers.{i}."
        names |= {f"{layer}norm1.alpha": (1, 1, 4096), f"{layer}norm2.alpha": (1, 1, 4096)}
        names[f"{layer}self_attn.in_proj_weight"] = (12288, 4096)
        names[f"{layer}self_attn.out_proj.weight"] = (4096, 4096)
        names[f"{layer}gating.linear_in.weight"] = (22528, 4096)
        names[f"{layer}gating.linear_out.weight"] = (4096, 11264)
    for i in DEPTH:
        layer = f"depformer.layers.{i}."
        names |= {f"{layer}norm1.alpha": (1, 1, 1024), f"{layer}norm2.alpha": (1, 1, 1024)}
        names[f"{layer}self_attn.in_proj_weight"] = (24576, 1024)
        names[f"{layer}self_attn.out_proj.weight"] = (8192, 1024)
        for k in STEPS:
            names[f"{layer}gating.{k}.linear_in.weight"] = (5632, 1024)
            names[f"{layer}gating.{k}.linear_out.weight"] = (1024, 2816)
    return names


def vis_listing():
    """moshika-vis-pytorch-bf16."""
    names = {}
    for name, shape in base_listing().items():
        head = name.split(".")[0]
        renamed = {"emb": "audio_emb", "linears": "audio_linears"}.get(head, head)
        prefix = "llm." if head in ("text_emb", "text_linear", "out_norm", "transformer") else ""
        names[prefix + renamed + name.removeprefix(head)] = shape
    for i in LAYERS:
        layer = f"llm.transformer.layers.{i}."
        names[f"{layer}norm_cross.alpha"] = (1, 1, 4096)
        names[f"{layer}cross_attention.gate.alpha.0.weight"] = (512, 4096)
        names[f"{layer}cross_attention.gate.alpha.2.weight"] = (4096, 512)
    shared = "llm.transformer.layers.0.cross_attention.mha."
    names[f"{shared}in_proj_weight"] = (12288, 4096)
    names[f"{shared}out_proj.weight"] = (4096, 4096)
    names["image_prefix.proj_xa.weight"] = (4096, 1152)
    names["image_prefix.proj_xa.bias"] = (4096,)
    names["image_prefix.norm_xa.alpha"] = (1, 1, 4096)
    return names | siglip_listing("image_prefix.enc.model.")


def mlx_listing():
    """moshika-vis-mlx, bfloat16."""
    names = {
        "text_emb.weight": (32001, 4096),
        "text_linear.weight": (32000, 4096),
        "out_norm.weight": (4096,),
    }
    names |= {f"audio_embs.{k}.weight": (2049, 4096) for k in range(16)}
    for i in LAYERS:
        layer = f"transformer.layers.{i}."
        names |= {f"{layer}{norm}.weight": (4096,) for norm in ("norm1", "norm2", "norm_cross")}
        names[f"{layer}self_attn.in_proj.weight"] = (12288, 4096)
        names[f"{layer}self_attn.out_proj.weight"] = (4096, 4096)
        names[f"{layer}gating.linear_in.weight"] = (22528, 4096)
        names[f"{layer}gating.linear_out.weight"] = (4096, 11264)
        names[f"{layer}cross_attention.gate.alpha.layers.0.weight"] = (512, 4096)
        names[f"{layer}cross_attention.gate.alpha.layers.2.weight"] = (4096, 512)
    shared = "transformer.layers.0.cross_attention.mha."
    names[f"{shared}q_proj.weight"] = names[f"{shared}out_proj.weight"] = (4096, 4096)
    names[f"{shared}kv_proj.weight"] = (8192, 4096)
    for k in STEPS:
        part = f"depformer.slices.{k}."
        names[f"{part}linear_in.weight"] = (1024, 4096)
        names[f"{part}linear_out.weight"] = (2048, 1024)
        names[f"{part}emb.weight"] = (2049 if k else 32001, 1024)
        for i in DEPTH:
            layer = f"{part}transformer.layers.{i}."
            names |= {f"{layer}norm1.weight": (1024,), f"{layer}norm2.weight": (1024,)}
            names[f"{layer}self_attn.in_proj.weight"] = (3072, 1024)
            names[f"{layer}self_attn.out_proj.weight"] = (1024, 1024)
            names[f"{layer}gating.linear_in.weight"] = (5632, 1024)
            names[f"{layer}gating.linear_out.weight"] = (1024, 2816)
    names["transformer.image_prefix.proj_xa.weight"] = (4096, 1152)
    names["transformer.image_prefix.proj_xa.bias"] = (4096,)
    names["transformer.image_prefix.norm_xa.weight"] = (4096,)
    return names | siglip_listing("img_embedder.model.")


def candle_listing(*, split):
    """moshika-vis-candle-bf16, and with queries apart its GGUF."""
    names = {
        name.removeprefix("llm.").replace(".mha.", ".").replace("audio_emb.", "emb."): shape
        for name, shape in vis_listing().items()
        if not name.startswith(("depformer", "audio_linears"))
    }
    if split:
        fused = "transformer.layers.0.cross_attention.in_proj_weight"
        del names[fused]
        names |= {f"{fused}_q": (4096, 4096), f"{fused}_kv": (8192, 4096)}
    for k in STEPS:
        part = f"depformer.{k}."
        names[f"{part}linear_in.weight"] = (1024, 4096)
        names[f"{part}linear_out.weight"] = (2048, 1024)
        names[f"{part}emb.weight"] = (2049 if k else 32001, 1024)
        for i in DEPTH:
            layer = f"{part}transformer.layers.{i}."
            names |= {f"{layer}norm1.alpha": (1, 1, 1024), f"{layer}norm2.alpha": (1, 1, 1024)}
            names[f"{layer}self_attn.in_proj_weight"] = (3072, 1024)
            names[f"{layer}self_attn.out_proj.weight"] = (1024, 1024)
            names[f"{layer}gating.linear_in.weight"] = (5632, 1024)
            names[f"{layer}gating.linear_out.weight"] = (1024, 2816)
    return names


FORMATS = {  # {format: (names as listed, our table, prefixes of our paths it covers)}
    "base": (base_listing(), kyutai.moshi_rules(REAL), ("backbone/", "depformer/")),
    "pytorch": (vis_listing(), kyutai.vis_rules(REAL), ("",)),
    "mlx": (mlx_listing(), mlx.mlx_rules(REAL), ("",)),
    "candle": (candle_listing(split=False), candle.candle_rules(REAL, split=False), ("",)),
    "gguf": (candle_listing(split=True), candle.candle_rules(REAL, split=True), ("",)),
    **{
        f"hf {prefix}": (
            siglip_listing(prefix),
            siglip_names.siglip_rules(ours="image/encoder/", upstream=prefix),
            ("image/encoder/",),
        )
        for prefix in hf_siglip.PREFIXES
    },
}


class Absent:
    """A tensor of which only shape and dtype can be known."""

    def __init__(self, shape):
        self.shape, self.dtype = shape, np.dtype(np.float32)

    def __getitem__(self, index):
        raise AssertionError("shapes are enough")


@pytest.mark.parametrize("name", FORMATS)
def test_every_listed_tensor_is_produced_and_accepted_once(name):
    listed, table, prefixes = FORMATS[name]
    sizes = kyutai.sizes(REAL)
    assert rules.tensor_shapes(table, sizes) == listed  # which asserts that no two rules write one
    absent = {tensor: Absent(shape) for tensor, shape in listed.items()}
    leaves = rules.leaf_views(absent, table, sizes, place=name)
    whole = tree.flatten(tree.merge(*model_shapes()))
    adapters = tree.flatten(model_shapes().adapters)
    covered = {
        path: leaf.shape
        for path, leaf in whole.items()
        if path.startswith(prefixes) and (path not in adapters or prefixes == ("",))
    }
    assert {path: leaf.shape for path, leaf in leaves.items()} == covered
    read = [tensor for leaf in leaves.values() for tensor in leaf.tensors]
    shared = [tensor for rule in table for tensor in [rule.name] * (len(rule.leaves) - 1)]
    assert len(read) == len(listed) + len(shared) and set(read) == set(listed)


def test_counts_of_the_listings():
    def count(names):
        return len(names), sum(int(np.prod(shape)) for shape in names.values())

    assert count(base_listing()) == (355, 7_687_729_152)
    assert count(vis_listing()) == (893, 8_307_240_688)
    assert count(siglip_listing("")) == (437, 413_327_088)
    assert count(candle_listing(split=False))[1] == 8_307_240_688 + 7 * 6 * 2 * 1024


def test_big_visions_listing_is_our_own_tree():
    """Its names are those of the tree, so that `nn.siglip` is the table."""
    listed = {
        path.removeprefix("image/encoder/"): leaf.shape
        for path, leaf in tree.flatten(model_shapes().frozen).items()
        if path.startswith("image/encoder/")
    }
    expected = {
        "embedding/kernel": (14, 14, 3, 1152),
        "embedding/bias": (1152,),
        "pos_embedding": (1, 1024, 1152),
        "Transformer/encoder_norm/scale": (1152,),
        "Transformer/encoder_norm/bias": (1152,),
    }
    block = "Transformer/encoderblock/"
    for norm, leaf in itertools.product(("LayerNorm_0", "LayerNorm_1"), ("scale", "bias")):
        expected[f"{block}{norm}/{leaf}"] = (27, 1152)
    attention = f"{block}MultiHeadDotProductAttention_0/"
    for part in ("query", "key", "value"):
        expected[f"{attention}{part}/kernel"] = (27, 1152, 16, 72)
        expected[f"{attention}{part}/bias"] = (27, 16, 72)
    expected |= {f"{attention}out/kernel": (27, 16, 72, 1152), f"{attention}out/bias": (27, 1152)}
    expected[f"{block}MlpBlock_0/Dense_0/kernel"] = (27, 1152, 4304)
    expected[f"{block}MlpBlock_0/Dense_0/bias"] = (27, 4304)
    expected[f"{block}MlpBlock_0/Dense_1/kernel"] = (27, 4304, 1152)
    expected[f"{block}MlpBlock_0/Dense_1/bias"] = (27, 1152)
    assert listed == expected


@functools.cache
def model_shapes():
    files = schema.FrozenFiles("", "", "", "")
    return load.shapes(schema.Config(frozen=files, model=REAL))
