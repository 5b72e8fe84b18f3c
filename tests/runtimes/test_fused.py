"""Triton's kernels against PyTorch: on a GPU where there is one, else in Triton's interpreter."""

import dataclasses
import os
from typing import Any

import exported
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from mvjax import gates  # noqa: E402
from mvjax.export import agreement  # noqa: E402
from mvjax.runtimes import loading  # noqa: E402
from mvjax.runtimes.torch import triton_kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F = torch.nn.functional
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def kernels() -> triton_kernels.Kernels:
    pytest.importorskip("triton", reason="PyTorch's CUDA builds bring Triton, its CPU builds not")
    return triton_kernels.kernels()


def noise(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def close(found: Any, expected: Any) -> None:
    bound = 1e-5 if found.dtype == torch.float32 else 1e-2
    assert found.shape == expected.shape
    assert (found.float() - expected.float()).abs().max() <= bound * expected.float().abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_rope_and_gated_silu(kernels, dtype):
    x, weight = noise(3, 1000, dtype=dtype), noise(1000)
    close(kernels.rms_norm(x, weight, 1e-8), F.rms_norm(x.float(), (1000,), weight, 1e-8))
    close(kernels.gated_silu(x), F.silu(x[:, :500].float()) * x[:, 500:].float())
    y, angle = noise(2, 3, 4, 24, dtype=dtype), noise(2, 1, 1, 12)
    r, i = y[:, :2].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = [r * angle.cos() - i * angle.sin(), r * angle.sin() + i * angle.cos()]
    close(kernels.rope(y[:, :2], angle.cos(), angle.sin()), torch.stack(turned, -1).flatten(-2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tanh", [True, False])
def test_gated_sum(kernels, dtype, tanh):
    x, u, alpha = noise(2, 96, dtype=dtype), noise(2, 96, dtype=dtype) + 1, noise(1)
    sees = torch.tensor([True, False], device=DEVICE)
    for logits in (noise(2, 96, dtype=dtype), noise(1, 1)):
        gate = torch.tanh(logits.float()) if tanh else torch.sigmoid(logits.float() - 4.0)
        y, mean = kernels.gated_sum(x, u, logits, sees, alpha, shift=4.0, tanh=tanh)
        close(y, torch.where(sees[:, None], x + (alpha * gate * u.float()).to(dtype), x))
        close(mean, torch.where(sees, gate.expand(2, 96).mean(-1), 0.0))


@pytest.mark.parametrize("position", [None, 0, 63, 5000])
@pytest.mark.parametrize("coded", [False, True])
def test_attention_reads_what_is_filled(kernels, position, coded):
    B, N, S, H, context = 2, 2, 104, 24, 100
    q, at, mask, scales = noise(B, N, H), None, None, None
    k, v = noise(B, N, S, H), noise(B, N, S, H) + 1
    keys, values = k, v
    if coded:
        k, v = ((x * 20).clamp(-127, 127).round().to(torch.int8) for x in (k, v))
        scales = noise(B, N, S).abs(), noise(B, N, S).abs() + 0.1
        keys, values = (x.float() * scale[..., None] for x, scale in zip((k, v), scales))
    if position is not None:
        at = torch.tensor([position, position + 1], device=DEVICE)
        last = at.clamp(max=context - 1)
        mask = (torch.arange(S, device=DEVICE) <= last[:, None])[:, None, None]
    used = None if position is None else context
    found = kernels.attend(q, k, v, scales=scales, position=at, context=used)
    close(
        found, F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask)[:, :, 0]
    )


@pytest.mark.parametrize("rows", [1, 3] if DEVICE == "cuda" else [1])  # no bfloat16 dot is played
def test_int8_linear(kernels, rows):
    x, bias = noise(rows, 1100, dtype=torch.bfloat16), noise(70)
    codes = (noise(70, 1100) * 40).clamp(-127, 127).to(torch.int8)
    scales = noise(70).abs().bfloat16() / 100
    close(
        kernels.int8_linear(x, codes, scales, bias),
        F.linear(x.float(), codes * scales.float()[:, None], bias),
    )


def test_kernels_that_differ_are_named():
    def turned(x, cos, sin):
        r, i = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([r * cos - i * sin, r * sin + i * cos], -1).flatten(-2)

    def gated(x, u, logits, sees, alpha, *, shift, tanh):
        gate = torch.sigmoid(logits.float() - shift)
        return torch.where(sees[:, None], x + u * gate, x), gate.mean(-1)

    def attend(q, k, v, *, position=None, context=None):
        mask = None
        if position is not None:
            last = position.clamp(max=context - 1)
            mask = (torch.arange(k.shape[2], device=DEVICE) <= last[:, None])[:, None, None]
        return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask)[:, :, 0]

    plain = triton_kernels.Kernels(
        rms_norm=lambda x, weight, eps: F.rms_norm(x.float(), weight.shape, weight, eps),
        rope=turned,
        gated_silu=lambda x: F.silu(x[:, : x.shape[1] // 2]) * x[:, x.shape[1] // 2 :],
        gated_sum=gated,
        attend=attend,
        int8_linear=lambda x, codes, scales, bias: F.linear(
            x.float(), codes.float() * scales.float()[:, None], bias
        ),
    )
    device = torch.device(DEVICE)
    assert not triton_kernels.disagreeing(plain, device)
    wrong = plain._replace(
        rms_norm=lambda x, weight, eps: x,
        attend=lambda q, k, v, **how: torch.full_like(q, float("nan")),
    )
    names = triton_kernels.disagreeing(wrong, device)
    assert names == ["rms_norm", "attend", "attend to all"]
    assert triton_kernels.loaded(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("gate", "kv_cache"), [(gates.Conditional(3, "tanh"), None), (gates.Constant(), "int8")]
)
def test_a_conversation_with_kernels(kernels, tmp_path, monkeypatch, gate, kv_cache):
    """More frames than the ring of the KV cache holds; in eager PyTorch and with the kernels."""
    model = exported.with_adapters(gate=gate)
    backbone = dataclasses.replace(model.backbone, layers=1, context=4)
    depth = dataclasses.replace(model.depformer, layers=1)
    model = dataclasses.replace(model, backbone=backbone, depformer=depth)
    _, folder = exported.write(model, "torch", tmp_path)
    said = []
    for used in (None, kernels):
        monkeypatch.setattr(triton_kernels, "loaded", lambda device, found=used: found)
        loaded = loading.open_folder(folder, dtype="float32", kv_cache=kv_cache)
        frames = agreement.talk(loaded, *exported.inputs(6, model))
        said.append([exported.stacked(frames, name) for name in ("text_logits", "hidden", "gates")])
    for plain, fused in zip(*said):
        bound = 1e-5 if kv_cache is None else 1e-2  # a code may fall to the other side
        assert np.abs(plain - fused).max() <= bound * np.abs(plain).max()
