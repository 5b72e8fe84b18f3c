"""The SigLIP encoder: big_vision's tree, parity with transformers, dtypes, wrong image sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvjax import tree as tree_lib
from mvjax.config import schema
from mvjax.nn import siglip

CONFIG = schema.SiglipConfig(width=20, layers=3, heads=2, hidden=36, patch=4, image_size=24)
B = 2


def _pixels() -> jax.Array:
    size = CONFIG.image_size
    return jax.random.uniform(jax.random.key(0), (B, size, size, 3), minval=-1.0)


def _params(config: schema.SiglipConfig = CONFIG) -> dict:
    """Random parameters, biases and norms included."""
    shapes = jax.eval_shape(siglip.Siglip(config).init, jax.random.key(0), _pixels())["params"]
    rng = np.random.default_rng(1)
    flat = {
        path: (rng.normal(size=leaf.shape) * 0.3).astype(np.float32)
        for path, leaf in tree_lib.flatten(shapes).items()
    }
    return tree_lib.unflatten(flat)


def test_the_tree_is_big_visions_scanned_img_tree():
    E, L, F, N, H, P = 20, 3, 36, 2, 10, 4
    block = "Transformer/encoderblock"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    expected = {
        "embedding/kernel": (P, P, 3, E),
        "embedding/bias": (E,),
        "pos_embedding": (1, 36, E),
        "Transformer/encoder_norm/scale": (E,),
        "Transformer/encoder_norm/bias": (E,),
        f"{block}/MlpBlock_0/Dense_0/kernel": (L, E, F),
        f"{block}/MlpBlock_0/Dense_0/bias": (L, F),
        f"{block}/MlpBlock_0/Dense_1/kernel": (L, F, E),
        f"{block}/MlpBlock_0/Dense_1/bias": (L, E),
        f"{attention}/out/kernel": (L, N, H, E),
        f"{attention}/out/bias": (L, E),
    }
    for norm in ("LayerNorm_0", "LayerNorm_1"):
        expected |= {f"{block}/{norm}/scale": (L, E), f"{block}/{norm}/bias": (L, E)}
    for name in ("query", "key", "value"):
        expected |= {f"{attention}/{name}/kernel": (L, E, N, H)}
        expected |= {f"{attention}/{name}/bias": (L, N, H)}
    shapes = {p: leaf.shape for p, leaf in tree_lib.flatten(_params()).items()}
    assert shapes == expected


def test_the_real_size_has_upstreams_parameter_count():
    real = schema.SiglipConfig()
    pixels = jax.ShapeDtypeStruct((1, 448, 448, 3), jnp.float32)
    shapes = jax.eval_shape(siglip.Siglip(real).init, jax.random.key(0), pixels)["params"]
    count = sum(leaf.size for leaf in tree_lib.flatten(shapes).values())
    block = 4 * 1152 * 1152 + 4 * 1152 + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    assert count == 27 * block + 14 * 14 * 3 * 1152 + 1152 + 1024 * 1152 + 2 * 1152


def test_bfloat16_is_close_to_float32_and_keeps_its_dtype():
    params = {"params": _params()}
    exact = siglip.Siglip(CONFIG).apply(params, _pixels())
    rough = siglip.Siglip(CONFIG, "bfloat16").apply(params, _pixels())
    assert exact.dtype == jnp.float32 and rough.dtype == jnp.bfloat16
    assert jnp.abs(exact - rough.astype(jnp.float32)).mean() < 0.05 * jnp.abs(exact).mean()


def test_another_image_size_is_refused_by_name():
    with pytest.raises(ValueError, match=r"24x24.*32x24"):
        siglip.Siglip(CONFIG).apply({"params": _params()}, jnp.zeros((B, 32, 24, 3)))


@pytest.mark.parity
@pytest.mark.parametrize("layers, tolerance", [(1, 1e-5), (3, 1e-4)])
def test_features_equal_transformers(layers: int, tolerance: float):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(CONFIG, layers=layers)
    params = _params(config)
    twin = _twin(config, params)
    with jax.default_matmul_precision("highest"):
        ours = siglip.Siglip(config).apply({"params": params}, _pixels())
    with torch.no_grad():
        theirs = twin(torch.from_numpy(np.array(_pixels())).permute(0, 3, 1, 2)).last_hidden_state
    assert ours.shape == (B, 36, 20)
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=0, atol=tolerance)


def _twin(config: schema.SiglipConfig, params: dict):
    """transformers' encoder with our weights, every name of its state filled exactly once."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.hidden,
            patch_size=config.patch,
            image_size=config.image_size,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
            vision_use_head=False,
        )
    ).eval()
    state = {name: torch.from_numpy(np.array(a)) for name, a in _hf_state(config, params).items()}
    prefix = "vision_model." if next(iter(model.state_dict())).startswith("vision_model.") else ""
    model.load_state_dict({prefix + name: value for name, value in state.items()}, strict=True)
    return model


def _hf_state(config: schema.SiglipConfig, params: dict) -> dict[str, np.ndarray]:
    """Reference section 3.4, right to left."""
    flat = tree_lib.flatten(params)
    E = config.width
    state = {
        "embeddings.patch_embedding.weight": flat["embedding/kernel"].transpose(3, 2, 0, 1),
        "embeddings.patch_embedding.bias": flat["embedding/bias"],
        "embeddings.position_embedding.weight": flat["pos_embedding"][0],
        "post_layernorm.weight": flat["Transformer/encoder_norm/scale"],
        "post_layernorm.bias": flat["Transformer/encoder_norm/bias"],
    }
    for i in range(config.layers):
        ours, theirs = "Transformer/encoderblock", f"encoder.layers.{i}"
        for a, b in (("LayerNorm_0", "layer_norm1"), ("LayerNorm_1", "layer_norm2")):
            state[f"{theirs}.{b}.weight"] = flat[f"{ours}/{a}/scale"][i]
            state[f"{theirs}.{b}.bias"] = flat[f"{ours}/{a}/bias"][i]
        for a, b in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            state[f"{theirs}.mlp.{b}.weight"] = flat[f"{ours}/MlpBlock_0/{a}/kernel"][i].T
            state[f"{theirs}.mlp.{b}.bias"] = flat[f"{ours}/MlpBlock_0/{a}/bias"][i]
        ours = f"{ours}/MultiHeadDotProductAttention_0"
        for a, b in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            kernel = flat[f"{ours}/{a}/kernel"][i].reshape(E, E)
            state[f"{theirs}.self_attn.{b}.weight"] = kernel.T
            state[f"{theirs}.self_attn.{b}.bias"] = flat[f"{ours}/{a}/bias"][i].reshape(E)
        state[f"{theirs}.self_attn.out_proj.weight"] = flat[f"{ours}/out/kernel"][i].reshape(E, E).T
        state[f"{theirs}.self_attn.out_proj.bias"] = flat[f"{ours}/out/bias"][i]
    return state
