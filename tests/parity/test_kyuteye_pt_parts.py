"""kyuteye_pt's norms, gates, scopes and gated cross-attention beside ours, each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import upstream

from mvjax import gates, scopes
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


AROUND = [
    (scopes.AroundImage(), "end"),
    (scopes.AroundImage(end="eoi"), "eoi"),
    (scopes.AroundImage(frames=4), 4),
    (scopes.AroundImage("eoi"), "end"),
    (scopes.AroundImage("eoi", frames=2), 2),
]


def gated(scope, end, **options):
    """kyuteye_pt's GatedCrossAttention with such a scope, with random weights."""
    torch.manual_seed(0)
    return PT.cross_attention.GatedCrossAttention(
        12, num_heads=3, xa_shared=False, xa_start=scope.start, xa_end=end, **options
    )


@pytest.mark.parametrize(("scope", "end"), AROUND, ids=str)
def test_scopes_around_image_tokens(scope, end, compare):
    tokens = np.array([[0, 0, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]])
    x = torch.zeros(2, 8, 12)
    mask = torch.tensor(tokens)[:, :, None]
    want = gated(scope, end).get_xa_scope(x, mask)[:, :, 0].numpy() > 0
    if scope.frames is not None:  # upstream keeps what comes before the start: reference 2.7
        after = (1 - tokens) * np.cumsum(tokens, 1)
        want &= np.cumsum(tokens if scope.start == "boi" else after, 1) > 0
    compare.same("mask", scope(jnp.asarray(tokens, bool)), want)


def test_no_layer_of_kyuteye_pt_is_told_where_image_tokens_are():
    """Why a scope around image tokens runs nowhere upstream, and export refuses it."""
    layer = PT.transformer.TransformerLayer(
        12, 3, 24, cross_attention=True, norm="rms_norm_f32", xa_start="boi", xa_end="end",
        xa_shared=False,
    )  # fmt: skip
    with pytest.raises(AssertionError), torch.no_grad():
        layer(torch.zeros(2, 5, 12), cross_attention_src=torch.zeros(2, 3, 12))


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
    theirs = gated(
        scopes.AroundImage(),
        "end",
        xa_dim=design.dim,
        xa_gating="none" if design.gate is None else "sigmoid",
        xa_conditional_gating=True,
        xa_gate_shared=design.share_gate,
    )
    rng = np.random.default_rng(5)
    width = config.image_width
    y, tokens = (rng.standard_normal(s).astype(np.float32) for s in ((2, 7, 12), (2, 5, width)))
    stands = np.array([[0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    want, opening = theirs(
        torch.tensor(y), torch.tensor(tokens), image_tokens_mask=torch.tensor(stands)[:, :, None]
    )
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
    found_kv = xattn.keys_values(kernels, jnp.asarray(tokens))
    u, g = xattn.gated_cross_attention(design, jnp.asarray(y), found_kv, kernels=kernels, gate=gate)
    inside = np.asarray(scopes.AroundImage()(jnp.asarray(stands, bool)))
    compare("u g", np.where(inside[:, :, None], u, 0), want, 1e-5)
    if opening is not None:
        compare("g", g, opening.mean(-1), 1e-5)
