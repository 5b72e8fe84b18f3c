"""Leaves against PyPI moshi and plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvjax import gates
from mvjax.nn import layers


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_embed_with_zero():
    table = jnp.asarray(noise(7, 3))
    params = {"params": {"embedding": table}}
    got = layers.Embedding(table.shape).apply(params, jnp.array([[0, -1], [6, 2]]))
    np.testing.assert_array_equal(got[0, 0], table[0])
    np.testing.assert_array_equal(got[0, 1], np.zeros(3))
    np.testing.assert_array_equal(got[1], table[jnp.array([6, 2])])


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("BTD,DpNH->BTpNH", (2, 3, 5), (5, 3, 2, 4)),
        ("BTNH,NHD->BTD", (2, 3, 2, 4), (2, 4, 5)),
        ("BTF,FD->BTD", (2, 3, 7), (7, 5)),
    ],
)
def test_flat_contractions_are_the_same(equation, left, right):
    x, kernel = jnp.asarray(noise(*left)), jnp.asarray(noise(*right, seed=1))

    def product(x, kernel, flat):
        y = layers.contract(equation, x, layers.Weight(kernel), dtype=x.dtype, flat=flat)
        return jnp.sum(jnp.sin(y)), y

    run = jax.value_and_grad(product, (0, 1), has_aux=True)
    for got, want in zip(*(jax.tree.leaves(run(x, kernel, flat)) for flat in (True, False))):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_contraction_that_is_no_matrix_product_is_not_flattened():
    with pytest.raises(AssertionError, match="BTD,FD->BTF"):
        kernel = layers.Weight(jnp.ones((7, 5)))
        layers.contract("BTD,FD->BTF", jnp.ones((2, 3, 5)), kernel, dtype="float32", flat=True)


@pytest.mark.parametrize("kind", ["mean_square", "variance"])
@pytest.mark.parametrize("eps", [1e-8, 1e-5])
def test_rms_norm(kind, eps):
    x, scale = noise(2, 5, 24) + 0.7, noise(24, seed=1)
    y = x.astype(np.float64)
    s = y.var(-1, ddof=1, keepdims=True) if kind == "variance" else (y**2).mean(-1, keepdims=True)
    got = layers.rms_norm(jnp.asarray(x), jnp.asarray(scale), kind=kind, eps=eps)
    np.testing.assert_allclose(got, y * scale / np.sqrt(s + eps), atol=1e-5)


def test_rms_norm_computes_in_float32_and_returns_the_dtype_of_x():
    x = jnp.asarray(noise(2, 3, 24), jnp.bfloat16)
    scale = jnp.ones(24)
    got = layers.rms_norm(x, scale, kind="mean_square", eps=1e-8)
    want = layers.rms_norm(x.astype(jnp.float32), scale, kind="mean_square", eps=1e-8)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


@pytest.mark.parity
def test_norm_rope_and_gated_mlp_equal_moshi():
    torch = pytest.importorskip("torch")
    gating = pytest.importorskip("moshi.modules.gating")
    rope = pytest.importorskip("moshi.modules.rope")
    transformer = pytest.importorskip("moshi.modules.transformer")
    x = noise(2, 5, 24)

    norm = transformer.create_norm_fn("rms_norm_f32", 24)
    scale = noise(24, seed=1)
    norm.load_state_dict({"alpha": torch.tensor(scale)[None, None]})
    got = layers.rms_norm(jnp.asarray(x), jnp.asarray(scale), kind="mean_square", eps=1e-8)
    np.testing.assert_allclose(got, norm(torch.tensor(x)).detach().numpy(), atol=1e-5)

    q, k = noise(2, 5, 4, 6), noise(2, 5, 4, 6, seed=1)
    offset = torch.tensor([37, 37])
    for mine, theirs in zip(
        (q, k),
        rope.RotaryEmbedding(True, max_period=10_000.0)(
            torch.tensor(q), torch.tensor(k), offset, time_before_heads=True
        ),
        strict=True,
    ):
        positions = jnp.arange(37, 42, dtype=jnp.int32)[None]
        got = layers.rope(jnp.asarray(mine), positions, base=10_000.0)
        np.testing.assert_allclose(got, theirs.numpy(), atol=1e-5)

    mlp = gating.make_gating("silu", 24, 99)
    w_in, w_out = noise(24, 2, 66, seed=2) * 0.2, noise(66, 24, seed=3) * 0.2
    mlp.load_state_dict(
        {
            "linear_in.weight": torch.tensor(w_in.reshape(24, -1)).T,
            "linear_out.weight": torch.tensor(w_out).T,
        }
    )
    halves = jnp.einsum("BTD,DhF->BThF", x, w_in)
    got = jnp.einsum("BTF,FD->BTD", layers.gated_silu(halves), w_out)
    np.testing.assert_allclose(got, mlp(torch.tensor(x)).detach().numpy(), atol=1e-5)


def test_gate_weights_lie_where_the_gate_says():
    module = layers.GateWeights(gates.Conditional(hidden=7), 24, 4)
    variables = module.init(jax.random.key(0))
    assert variables["params"]["down"]["kernel"].shape == (24, 7)
    got = module.apply(variables)
    assert {path: x.shape for path, x in got.items()} == {
        "down/kernel": (24, 7),
        "up/kernel": (7, 24),
    }
    bound = 7**-0.5
    assert 0.8 * bound < np.abs(got["up/kernel"]).max() < bound


def test_rope_by_matmul_is_rope():
    x, positions = jnp.asarray(noise(2, 5, 3, 8)), jnp.arange(5)[None]

    def turned(rope, x):
        y = rope(x, positions, base=10_000.0).astype(jnp.float32)
        return jnp.sum(jnp.sin(y)), y

    for dtype in (jnp.float32, jnp.bfloat16):
        runs = [
            jax.value_and_grad(lambda x, rope=rope: turned(rope, x), has_aux=True)(x.astype(dtype))
            for rope in (layers.rope, layers.rope_by_matmul)
        ]
        for want, got in zip(*map(jax.tree.leaves, runs), strict=True):
            np.testing.assert_allclose(got.astype("float32"), want.astype("float32"), atol=1e-6)
