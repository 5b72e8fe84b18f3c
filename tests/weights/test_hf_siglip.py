"""Hugging Face SigLIP and PaliGemma files, written by transformers itself."""

import json

import as_written
import jax
import numpy as np
import pytest
import safetensors.numpy

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import siglip
from mvjax.weights import hf_siglip, positions, rules, safetensors_io, siglip_names

CONFIG = schema.SiglipConfig(width=20, layers=1, heads=2, hidden=36, patch=4, image_size=24)
TABLE = siglip_names.siglip_rules(ours="", upstream="")
SHARDS = "5KB"
PATHS = {
    "embeddings.position_embedding.weight": "pos_embedding",
    "encoder.layers.0.mlp.fc1.bias": "Transformer/encoderblock/MlpBlock_0/Dense_0/bias",
}


def vision_config(transformers):
    return transformers.SiglipVisionConfig(
        hidden_size=20, num_hidden_layers=1, num_attention_heads=2, intermediate_size=36,
        patch_size=4, image_size=24, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6,
        projection_dim=12, vision_use_head=False,
    )  # fmt: skip


def random_model(torch, model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def load(path):
    """The encoder's leaves, each read whole."""
    return rules.read_leaves(hf_siglip.open_siglip(path, CONFIG), place=str(path))


@pytest.fixture
def vision():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return random_model(torch, transformers.SiglipVisionModel(vision_config(transformers)))


def state():
    """The encoder's tensors under their plain names."""
    rng = np.random.default_rng(0)
    flat = {
        path: rng.standard_normal(shape).astype("f")
        for path, shape in rules.leaf_shapes(TABLE, siglip_names.sizes(CONFIG)).items()
    }
    return as_written.tensors(flat, TABLE, siglip_names.sizes(CONFIG)), flat


@pytest.mark.parity
@pytest.mark.parametrize("shard", ["5GB", SHARDS])
def test_features_of_a_file_that_transformers_wrote(tmp_path, vision, shard):
    torch = pytest.importorskip("torch")
    vision.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard == SHARDS)
    params = tree.unflatten(load(tmp_path))
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 24, 24, 3)).astype("f")
    with jax.default_matmul_precision("highest"):
        ours = siglip.Siglip(CONFIG).apply({"params": params}, jax.numpy.asarray(pixels))
    with torch.no_grad():
        theirs = vision(torch.from_numpy(pixels).permute(0, 3, 1, 2)).last_hidden_state
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["SiglipModel", "PaliGemmaForConditionalGeneration"])
def test_the_encoder_inside_a_larger_model(tmp_path, name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = vision_config(transformers)
    if name == "SiglipModel":
        text = transformers.SiglipTextConfig(
            vocab_size=17, hidden_size=20, intermediate_size=36, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=5,
        )  # fmt: skip
        config.vision_use_head = True
        whole = transformers.SiglipConfig(
            text_config=text.to_dict(), vision_config=config.to_dict()
        )
    else:
        text = transformers.GemmaConfig(
            vocab_size=23, hidden_size=12, intermediate_size=28, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=6,
        )  # fmt: skip
        whole = transformers.PaliGemmaConfig(
            text_config=text.to_dict(), vision_config=config.to_dict(), projection_dim=12
        )
    model = random_model(torch, getattr(transformers, name)(whole))
    model.save_pretrained(tmp_path, max_shard_size=SHARDS)
    found = load(tmp_path)
    values = {n: t.numpy() for n, t in model.state_dict().items() if "vision" in n}
    for theirs, ours in PATHS.items():
        (value,) = [value for n, value in values.items() if n.endswith(theirs)]
        np.testing.assert_array_equal(found[ours][0], value)


@pytest.mark.parametrize("prefix", hf_siglip.PREFIXES)
def test_every_prefix_and_the_unused_parts(tmp_path, prefix):
    tensors, flat = state()
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    other = (
        f"{prefix}head.probe",
        "text_model.embeddings.token_embedding.weight",
        "logit_scale",
        "language_model.model.embed_tokens.weight",
        "model.language_model.norm.weight",
        "multi_modal_projector.linear.weight",
        "lm_head.weight",
    )
    named |= {name: np.zeros(2, np.float32) for name in other}
    safetensors_io.write(tmp_path / "model.safetensors", named)
    found = load(tmp_path)
    assert found.keys() == flat.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_another_image_size_is_resampled_and_said_to_be(tmp_path, caplog):
    tensors, _ = state()
    name = "embeddings.position_embedding.weight"
    tensors[name] = np.random.default_rng(2).normal(size=(49, 20)).astype("f")
    safetensors_io.write(tmp_path / "model.safetensors", tensors)
    leaf = hf_siglip.open_siglip(tmp_path, CONFIG)["pos_embedding"]
    np.testing.assert_array_equal(leaf[()][0], positions.resample(tensors[name], 36))
    assert "from images of 28 pixels (7 x 7) to the config's 24 (6 x 6)" in caplog.text


def test_what_does_not_fit_names_the_file_of_a_sharded_model(tmp_path):
    tensors, _ = state()
    tensors["vision_model.new.weight"] = np.zeros(3, np.float32)
    tensors["post_layernorm.bias"] = np.zeros(21, np.float32)
    del tensors["post_layernorm.weight"]
    file = "model-00001-of-00001.safetensors"
    safetensors.numpy.save_file(tensors, tmp_path / file)
    index = {"weight_map": dict.fromkeys(tensors, file)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json: 3 of \d+ tensors") as error:
        load(tmp_path)
    for line in (
        "post_layernorm.weight: missing, expected [20]",
        f"vision_model.new.weight: unexpected (in {tmp_path / file})",
        f"post_layernorm.bias: expected [20], got [21] (in {tmp_path / file})",
    ):
        assert line in str(error.value)


def test_a_file_without_an_image_encoder_says_so(tmp_path):
    safetensors_io.write(tmp_path / "m.safetensors", {"lm_head.weight": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match=r"m\.safetensors: expected one image encoder.*found 0"):
        load(tmp_path / "m.safetensors")
