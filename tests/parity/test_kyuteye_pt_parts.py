"""kyuteye_pt's norms, gates and scopes beside ours, each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import upstream

from mvjax.nn import gates, layers, scopes

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PT = upstream.kyuteye_pt()
torch = pytest.importorskip("torch")
GATES = (
    gates.Constant("tanh"),
    gates.Constant("sigmoid"),
    gates.Conditional(6, "tanh"),
    gates.Conditional(6, "sigmoid"),
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "kind", "eps"),
    [
        ("RMS_NORM", "variance", 1e-5),
        ("RMS_NORM_F32", "variance", 1e-8),
        ("REAL_RMS_NORM", "mean_square", 1e-5),
        ("REAL_RMS_NORM_F32", "mean_square", 1e-8),
    ],
)
@torch.no_grad()
def test_norms(name, kind, eps, dtype, compare):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((2, 300, 24)) + 0.7).astype(jnp.dtype(dtype))
    scale = (rng.standard_normal(24) + 1).astype(jnp.bfloat16).astype(np.float32)
    norm = getattr(PT.utils.NormalizationLayer, name).create_norm_fn(24)
    norm.load_state_dict({"alpha": torch.tensor(scale)[None, None]})
    y = torch.tensor(x.astype(np.float32)).to(getattr(torch, dtype))
    want = norm.to(y.dtype)(y).float().numpy()
    precision = "float32" if name.endswith("F32") else "activations"
    run = jax.jit(lambda x, a: layers.rms_norm(x, a, kind=kind, eps=eps, precision=precision))
    found = np.asarray(run(jnp.asarray(x), jnp.asarray(scale)), np.float32)
    steps = 2**-6 if dtype == "bfloat16" else 1e-6  # two: a sum may round to the other side
    compare("relative", found / want, np.ones_like(want), steps)
    assert np.mean(found != want) < (0.01 if dtype == "bfloat16" else 1)


@pytest.mark.parametrize("gate", GATES, ids=str)
@torch.no_grad()
def test_gates_in_bfloat16(gate, compare):
    conditional = isinstance(gate, gates.Conditional)
    theirs = PT.cross_attention.XAGate(
        activation=gate.activation, conditional_gating=conditional, dims=48
    ).bfloat16()
    rng = np.random.default_rng(2)
    weights = {p: _exact(s.shape, rng) for p, s in gate.params(48).items()}
    state = {f"{gate.upstream()[p]}": torch.tensor(w.T) for p, w in weights.items()}
    if not conditional:
        state = {"alpha": state["alpha"].reshape(1, 1, 1)}
    theirs.load_state_dict(state)
    u = rng.standard_normal((2, 40, 48)).astype(jnp.bfloat16)
    product, want = theirs(torch.tensor(u.astype(np.float32)).bfloat16())
    found = jax.jit(lambda w, u: gate(w, u, dtype=u.dtype))(weights, jnp.asarray(u))
    compare.same("g", found, np.broadcast_to(want.float().numpy(), u.shape))
    ours = (u.astype(np.float32) * np.asarray(found)).astype(jnp.bfloat16).astype(np.float32)
    compare.same("u g", ours, product.float().numpy())


def _exact(shape, rng):
    """bfloat16 values, one in each column, so that products have no order of summation."""
    values = (rng.standard_normal(shape) * 3).astype(jnp.bfloat16).astype(np.float32)
    if len(shape) < 2:
        return values
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None]
    return np.where(rows == columns % shape[0], values, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("start", "end"), [("boi", "end"), ("boi", "eoi"), ("boi", 4), ("eoi", "end"), ("eoi", 2)]
)
def test_scopes_around_image_tokens(start, end, compare):
    tokens = np.array([[0, 0, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]])
    module = PT.cross_attention.GatedCrossAttention(
        8, num_heads=2, xa_shared=False, xa_start=start, xa_end=end
    )
    x = torch.zeros(2, 8, 8)
    want = module.get_xa_scope(x, torch.tensor(tokens)[:, :, None])[:, :, 0].numpy() > 0
    if isinstance(end, int):  # upstream keeps what comes before the start: reference 2.7
        begun = np.cumsum(tokens if start == "boi" else (1 - tokens) * np.cumsum(tokens, 1), 1) > 0
        want &= begun
    found = scopes.around_image(jnp.asarray(tokens, bool), start=start, end=end)
    compare.same("mask", found, want)
