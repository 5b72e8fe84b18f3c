"""Kyutai's Mimi file: names, spellings, round trip, and what is refused."""

import jax
import jax.numpy as jnp
import mimi_file
import mimi_twin
import numpy as np
import pytest

from mvjax import tree
from mvjax.codec import mimi
from mvjax.config import schema
from mvjax.weights import mimi as mimi_weights
from mvjax.weights import rules, safetensors_io

CONFIG = mimi_twin.CONFIG
BOOK = "quantizer.rvq_rest.vq.layers.2._codebook."


def _shapes(config: schema.MimiConfig) -> dict:
    audio = jnp.zeros((1, config.frame_samples))
    return jax.eval_shape(mimi.Mimi(config).init, jax.random.key(0), audio)["params"]


@pytest.fixture
def params() -> dict:
    rng = np.random.default_rng(0)
    flat = tree.flatten(_shapes(CONFIG))
    return tree.unflatten({p: rng.normal(size=s.shape).astype("f") for p, s in flat.items()})


@pytest.fixture
def path(tmp_path, params):
    mimi_file.write(tmp_path / "mimi.safetensors", params, CONFIG)
    return tmp_path / "mimi.safetensors"


def test_what_is_saved_is_loaded(path, params):
    loaded = mimi_weights.load_mimi(path, CONFIG)
    tree.assert_same_tree(_shapes(CONFIG), loaded, place="loaded")
    for name, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(tree.flatten(loaded)[name], leaf)


def test_the_real_table_is_that_of_the_released_file():
    config = schema.MimiConfig()
    axes = mimi_weights.sizes(config)
    table = mimi_weights.mimi_rules(config)
    assert rules.leaf_shapes(table, axes) == {
        p: leaf.shape for p, leaf in tree.flatten(_shapes(config)).items()
    }
    shapes = rules.tensor_shapes(table, axes)
    layer = "encoder_transformer.transformer.layers.7."
    expected = {
        "encoder.model.0.conv.conv.weight": (64, 1, 7),
        "encoder.model.1.block.1.conv.conv.weight": (32, 64, 3),
        "encoder.model.1.block.3.conv.conv.weight": (64, 32, 1),
        "encoder.model.3.conv.conv.weight": (128, 64, 8),
        "encoder.model.12.conv.conv.weight": (1024, 512, 16),
        "encoder.model.14.conv.conv.weight": (512, 1024, 3),
        "decoder.model.0.conv.conv.weight": (1024, 512, 7),
        "decoder.model.2.convtr.convtr.weight": (1024, 512, 16),
        "decoder.model.11.convtr.convtr.weight": (128, 64, 8),
        "decoder.model.11.convtr.convtr.bias": (64,),
        "decoder.model.12.block.1.conv.conv.bias": (32,),
        "decoder.model.14.conv.conv.weight": (1, 64, 3),
        f"{layer}self_attn.in_proj_weight": (1536, 512),
        f"{layer}self_attn.out_proj.weight": (512, 512),
        f"{layer}linear1.weight": (2048, 512),
        f"{layer}norm2.bias": (512,),
        f"{layer}layer_scale_1.scale": (512,),
        "downsample.conv.conv.conv.weight": (512, 512, 4),
        "upsample.convtr.convtr.convtr.weight": (512, 1, 4),
        "quantizer.rvq_first.input_proj.weight": (256, 512, 1),
        "quantizer.rvq_first.output_proj.weight": (512, 256, 1),
        "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum": (2048, 256),
        "quantizer.rvq_rest.vq.layers.30._codebook.cluster_usage": (2048,),
    }
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parity
def test_every_name_of_moshis_full_size_model_is_accepted_exactly_once():
    """The `moshi` package's modules on the meta device: no memory, all 318 names and shapes."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("moshi")
    config = schema.MimiConfig()
    with torch.device("meta"):
        theirs = {n: tuple(x.shape) for n, x in mimi_twin.assemble(config).state_dict().items()}
    views = {n: np.broadcast_to(np.float32(0), shape) for n, shape in theirs.items()}
    known = mimi_weights.released_names(views, place="moshi")
    table = mimi_weights.mimi_rules(config) + mimi_weights.flag_rules()
    expected = rules.tensor_shapes(table, mimi_weights.sizes(config))
    assert {name: view.shape for name, view in known.items()} == expected
    assert len(known) == len(theirs)


def test_other_spellings_are_accepted(path, params):
    renames = (
        ("_initialized", "inited"),
        ("cluster_usage", "cluster_size"),
        ("rvq_first.vq.layers.0._codebook.embedding_sum", "rvq_first.vq.layers.0._codebook.embed_avg"),
        ("embedding_sum", "embed_sum"),
        ("in_proj_weight", "in_projs.0.weight"),
        ("out_proj.weight", "out_projs.0.weight"),
    )  # fmt: skip
    renamed = {}
    for name, tensor in safetensors_io.read(path).items():
        for known, other in renames:
            name = name.replace(known, other)
        renamed[name] = tensor
    assert not {n for n in renamed if n.endswith(("_sum", "_usage", "_weight"))} - {
        n for n in renamed if n.endswith("embed_sum")
    }
    safetensors_io.write(path, renamed)
    loaded = tree.flatten(mimi_weights.load_mimi(path, CONFIG))
    for name, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(loaded[name], leaf)


def test_every_tensor_that_does_not_fit_is_named(path):
    tensors = safetensors_io.read(path)
    del tensors["encoder.model.3.conv.conv.bias"], tensors[f"{BOOK}_initialized"]
    tensors["decoder.model.99.weight"] = np.zeros(3, np.float32)
    tensors[f"{BOOK}cluster_usage"] = np.zeros(CONFIG.codes + 1, np.float32)
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError) as error:
        mimi_weights.load_mimi(path, CONFIG)
    for fact in (
        str(path),
        "encoder.model.3.conv.conv.bias: missing",
        f"{BOOK}_initialized: missing",
        "decoder.model.99.weight: unexpected",
        f"{BOOK}cluster_usage: expected [16], got [17]",
    ):
        assert fact in str(error.value)


def test_untrained_codebooks_are_refused(path):
    tensors = safetensors_io.read(path)
    tensors[f"{BOOK}_initialized"] = np.zeros(1, np.float32)
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match=r"rvq_rest.*got 0 at levels \[2\]"):
        mimi_weights.load_mimi(path, CONFIG)


def test_two_spellings_of_one_tensor_are_refused(path):
    tensors = safetensors_io.read(path)
    tensors[f"{BOOK}embed_sum"] = tensors[f"{BOOK}embedding_sum"] + 1
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match="two spellings.*layers.2._codebook.embedding_sum"):
        mimi_weights.load_mimi(path, CONFIG)


@pytest.mark.parity
def test_moshi_reads_what_is_saved(path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("moshi")
    from safetensors import torch as safetensors_torch

    model = mimi_twin.build()
    result = model.load_state_dict(safetensors_torch.load_file(path), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    ours = safetensors_io.read(path)["decoder.model.2.convtr.convtr.weight"]
    assert torch.equal(model.decoder.model[2].convtr.convtr.weight, torch.from_numpy(ours))
