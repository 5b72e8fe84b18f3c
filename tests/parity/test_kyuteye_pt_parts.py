"""kyuteye_pt's norms, gates and gated cross-attention beside ours, each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import upstream

from mvjax import gates
from mvjax.config import schema
from mvjax.nn import layers, xattn

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PT = upstream.kyuteye_pt()
torch = pytest.importorskip("torch")
GATES = (
    gates.Constant("tanh"),
    gates.Constant("sigmoid"),
    gates.Conditional(6, "tanh"),
    gates.Conditional(6, "sigmoid"),
)


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
def test_norms(name, kind, eps, compare):
    """Rows as small as 1e-5 too, so that the wrong eps shows."""
    rng = np.random.default_rng(1)
    size = 10 ** rng.uniform(-5, 1, (2, 300, 1))
    x = (size * (rng.standard_normal((2, 300, 24)) + 0.7)).astype(np.float32)
    scale = (rng.standard_normal(24) + 1).astype(np.float32)
    norm = getattr(PT.utils.NormalizationLayer, name).create_norm_fn(24)
    norm.load_state_dict({"alpha": torch.tensor(scale)[None, None]})
    want = norm(torch.tensor(x)).numpy()
    run = jax.jit(lambda x, a: layers.rms_norm(x, a, kind=kind, eps=eps))
    found = np.asarray(run(jnp.asarray(x), jnp.asarray(scale)))
    compare("relative", found / want, np.ones_like(want), 1e-5)


@pytest.mark.parametrize("name", ["RMS_NORM_F32", "REAL_RMS_NORM_F32"])
@torch.no_grad()
def test_norms_of_bfloat16_in_float32(name, compare):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((2, 300, 24)) + 0.7).astype(jnp.bfloat16)
    scale = (rng.standard_normal(24) + 1).astype(jnp.bfloat16).astype(np.float32)
    norm = getattr(PT.utils.NormalizationLayer, name).create_norm_fn(24)
    norm.load_state_dict({"alpha": torch.tensor(scale)[None, None]})
    want = norm.bfloat16()(torch.tensor(x.astype(np.float32)).bfloat16()).float().numpy()
    kind = "mean_square" if name.startswith("REAL") else "variance"
    run = jax.jit(lambda x, a: layers.rms_norm(x, a, kind=kind, eps=1e-8))
    found = np.asarray(run(jnp.asarray(x), jnp.asarray(scale)), np.float32)
    compare("relative", found / want, np.ones_like(want), 2**-6)  # two: a sum may round either way
    assert np.mean(found != want) < 0.01


# kyuteye_pt computes gates in the dtype it serves in, ours the logits in float32: in bfloat16 its shift by 4
# rounds to steps of 2^-5, at a slope of the sigmoid of at most 1/4, and then its g to steps of 2^-8
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-7)])
@pytest.mark.parametrize("gate", GATES, ids=str)
@torch.no_grad()
def test_gates(gate, dtype, tolerance, compare):
    conditional = isinstance(gate, gates.Conditional)
    theirs = PT.cross_attention.XAGate(
        activation=gate.activation, conditional_gating=conditional, dims=48
    ).to(getattr(torch, dtype))
    rng = np.random.default_rng(2)
    weights = {p: _exact(s.shape, rng) for p, s in gate.params(48, 4).items()}
    state = {f"{gate.upstream()[p]}": torch.tensor(w.T) for p, w in weights.items()}
    if not conditional:
        state = {"alpha": state["alpha"].reshape(1, 1, 1)}
    theirs.load_state_dict(state)
    u = rng.standard_normal((2, 40, 48)).astype(dtype)
    product, want = theirs(torch.tensor(u.astype(np.float32)).to(getattr(torch, dtype)))
    found = np.asarray(jax.jit(gate)(weights, toy.seen(jnp.asarray(u))))
    compare("g", found, np.broadcast_to(want.float().numpy(), u.shape), tolerance)
    size = np.abs(u.astype(np.float32)).max()
    compare.within("u g", u.astype(np.float32) * found, product.float().numpy(), size * tolerance)


def _exact(shape, rng):
    """bfloat16 values, one in each column, so that matmuls have no order of summation."""
    values = (rng.standard_normal(shape) * 3).astype(jnp.bfloat16).astype(np.float32)
    if len(shape) < 2:
        return values
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None]
    return np.where(rows == columns % shape[0], values, 0).astype(np.float32)


@pytest.mark.parametrize(
    "fields",
    [{}, {"dim": 10}, {"dim": 12}, {"dim": 10, "share_gate": True}, {"gate": None, "dim": 10}],
    ids=str,
)
@torch.no_grad()
def test_gated_cross_attention(fields, compare):
    """The whole module, its keys and values from image tokens of some width."""
    design = schema.CrossAttentionConfig(**{"gate": gates.Conditional(1), **fields})
    config = schema.ModelConfig(
        backbone=schema.BackboneConfig(width=12, heads=3), cross_attention=design
    )
    PT.cross_attention.SharedModuleType._instances.clear()
    torch.manual_seed(0)
    theirs = PT.cross_attention.GatedCrossAttention(
        12,
        num_heads=3,
        xa_shared=False,
        xa_dim=design.dim,
        xa_gating="none" if design.gate is None else "sigmoid",
        xa_conditional_gating=True,
        xa_gate_shared=design.share_gate,
    )
    rng = np.random.default_rng(5)
    width = config.image_width
    y, tokens = (rng.standard_normal(s).astype(np.float32) for s in ((2, 7, 12), (2, 5, width)))
    want, g_want = theirs(torch.tensor(y), torch.tensor(tokens))
    mha = {name: w.numpy() for name, w in theirs.mha.state_dict().items()}
    split = "in_proj_weight_q" in mha
    assert split == (width != 12)
    fused = mha["in_proj_weight_q"] if split else mha["in_proj_weight"]
    q, kv = fused[:12], mha["in_proj_weight_kv"] if split else fused[12:]
    kernels = {"q": q, "k": kv[:12], "v": kv[12:]}
    kernels = {n: jnp.asarray(w.T.reshape(-1, 3, 4)) for n, w in kernels.items()}
    kernels["out"] = jnp.asarray(mha["out_proj.weight"].T.reshape(3, 4, 12))
    gate = None
    if design.gate is not None:
        named = {theirs_: ours for ours, theirs_ in design.gate.upstream().items()}
        gate = {named[n]: jnp.asarray(w.numpy().T) for n, w in theirs.gate.state_dict().items()}
    found_kv = [xattn.keys_values(kernels, jnp.asarray(tokens))]
    u, g = xattn.gated_cross_attention(design, jnp.asarray(y), found_kv, kernels=kernels, gate=gate)
    compare("u g", u, want, 1e-5)
    if g_want is not None:
        compare("g", g, g_want.mean(-1), 1e-5)
