"""Gated cross-attention against a PyTorch twin written from the reference (sections 2.6, 2.2, 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from mvjax.config import schema
from mvjax.nn import xattn

torch = pytest.importorskip("torch")
F = torch.nn.functional

pytestmark = pytest.mark.parity


def tensor(x):
    return torch.tensor(np.asarray(x))


def norm_twin(x, alpha, *, kind, eps):
    s = x.var(-1, keepdim=True) if kind == "variance" else x.pow(2).mean(-1, keepdim=True)
    return x * (alpha * torch.rsqrt(s + eps))


def gate_twin(name, weights, u):
    """g of reference section 2.6; `weights` are our leaves of the gate."""
    if name == "none":
        return torch.ones_like(u)
    if name in ("tanh", "sigmoid"):
        logit = tensor(weights["alpha"]).expand(u.shape)
    else:
        mlp = torch.nn.Sequential(
            torch.nn.Linear(24, 7, bias=False), torch.nn.ReLU(), torch.nn.Linear(7, 24, bias=False)
        )
        down, up = weights["down"]["kernel"], weights["up"]["kernel"]
        mlp.load_state_dict({"0.weight": tensor(down).T, "2.weight": tensor(up).T})
        logit = mlp(u)
    return torch.tanh(logit) if "tanh" in name else torch.sigmoid(logit - 4)


def cross_attention_twin(y, tokens, kernels):
    """Upstream's fused layout: in_proj_weight rows q | k | v, head-major."""
    fused = torch.cat([tensor(kernels[n]["kernel"]).reshape(24, 24).T for n in ("q", "k", "v")])
    w_q, w_k, w_v = fused.chunk(3)
    q, k, v = (
        F.linear(x, w).unflatten(-1, (4, 6)).transpose(1, 2)
        for x, w in ((y, w_q), (tokens, w_k), (tokens, w_v))
    )
    u = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(u, tensor(kernels["out"]["kernel"]).reshape(24, 24).T)


def layer_of(tree, layer):
    return jax.tree.map(lambda x: x[layer], tree)


@pytest.mark.parametrize("kind, eps", [("variance", 1e-5), ("mean_square", 1e-8)])
def test_projection_and_norm(kind, eps):
    config = toy.with_cross_attention(image_norm=kind, image_norm_eps=eps)
    features = (
        np.random.default_rng(3).standard_normal((2, 4, toy.MODEL.siglip.width)).astype(np.float32)
        + 0.5
    )
    image = toy.params(config)["image"]
    x = F.linear(tensor(features), tensor(image["proj"]["kernel"]).T, tensor(image["proj"]["bias"]))
    want = norm_twin(x, tensor(image["norm"]["scale"]), kind=kind, eps=eps)
    got = toy.apply("project", features, config=config)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", list(toy.GATES))
def test_one_gated_layer(name):
    config = toy.with_cross_attention(gate=toy.GATES[name])
    weights = toy.params(config)
    gate = weights["backbone"]["blocks"].get("gate")
    y, tokens = (
        np.random.default_rng(s).standard_normal((2, n, 24)).astype(np.float32)
        for s, n in ((4, 5), (5, 3))
    )
    kernels = {n: weights["xa"][n]["kernel"] for n in ("q", "k", "v", "out")}
    flat = None if gate is None else jax.tree.map(lambda x: x[1], _flat(gate))
    got, gate_mean = xattn.gated_cross_attention(
        config.cross_attention,
        jnp.asarray(y),
        [xattn.keys_values(kernels, jnp.asarray(tokens))],
        kernels=kernels,
        gate=flat,
    )
    with torch.no_grad():
        u = cross_attention_twin(tensor(y), tensor(tokens), weights["xa"])
        g = gate_twin(name, None if gate is None else layer_of(gate, 1), u)
    np.testing.assert_allclose(got, (u * g).numpy(), atol=1e-5)
    np.testing.assert_allclose(gate_mean, g.mean(-1).numpy(), atol=1e-5)


def _flat(gate):
    return {
        "/".join(str(k.key) for k in path): x
        for path, x in jax.tree_util.tree_leaves_with_path(gate)
    }


@pytest.mark.parametrize("share", ["qkv", "kv", "none"])
@pytest.mark.parametrize("share_gate", [False, True])
@pytest.mark.parametrize("name", ["tanh", "conditional_sigmoid"])
def test_whole_backbone_with_images(share, share_gate, name):
    config = toy.with_cross_attention(gate=toy.GATES[name], share=share, share_gate=share_gate)
    twin = pytest.importorskip("moshi_twin").build(toy.params(config), config)
    codes, has_image = toy.codes(), np.array([True, False])
    features = toy.apply("encode_images", toy.pixels(), config=config)
    tokens = tensor(toy.apply("project", features, config=config))
    with torch.no_grad():
        want = _backbone_twin(twin, toy.params(config), config, name, codes, tokens, has_image)
    kv = toy.apply("image_kv", toy.pixels(), config=config)
    z, gate_means = toy.apply("hidden", codes, kv, has_image, config=config)
    np.testing.assert_allclose(z, want[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(gate_means, want[1].numpy(), atol=1e-4)


def _backbone_twin(twin, weights, config: schema.ModelConfig, name, codes, tokens, has_image):
    """Moshi's own layers with the image step between attention and MLP; reference section 2.5."""
    xa, blocks = config.cross_attention, weights["backbone"]["blocks"]
    x = twin.text_emb(tensor(codes[:, 0]).long())
    for k in range(6):
        x = x + twin.emb[k](tensor(codes[:, 1 + k]).long())
    gate_means = []
    on = tensor(has_image)[:, None, None]
    for i, layer in enumerate(twin.transformer.layers):
        x = layer._sa_block(x)
        y = norm_twin(x, tensor(blocks["norm_xa"]["scale"][i]), kind="mean_square", eps=1e-8)
        own = layer_of(blocks["xa"], i) if "xa" in blocks else {}
        u = cross_attention_twin(y, tokens, {**weights.get("xa", {}), **own})
        gate = weights["gate"] if xa.share_gate else layer_of(blocks["gate"], i)
        g = gate_twin(name, gate, u)
        u = u * g
        if xa.share_gate and xa.share == "qkv":
            u = u * tensor(blocks["gate_alpha"][i])
        x = x + torch.where(on, u, torch.zeros_like(u))
        gate_means.append(torch.where(on, g, torch.zeros_like(g)).mean(-1))
        x = layer._ff_block(x)
    return twin.out_norm(x), torch.stack(gate_means)
