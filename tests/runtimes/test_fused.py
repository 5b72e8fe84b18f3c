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
pytest.importorskip("triton")

from mvjax import gates  # noqa: E402
from mvjax.export import agreement  # noqa: E402
from mvjax.runtimes import loading  # noqa: E402
from mvjax.runtimes.torch import triton_kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F = torch.nn.functional
KERNELS = triton_kernels.kernels()
DTYPES = [torch.float32, torch.bfloat16]


def noise(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def close(found: Any, expected: Any) -> None:
    bound = 1e-5 if found.dtype == torch.float32 else 1e-2
    assert found.shape == expected.shape
    assert (found.float() - expected.float()).abs().max() <= bound * expected.float().abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_rope_and_gated_silu(dtype):
    x, weight = noise(3, 1000, dtype=dtype), noise(1000)
    close(KERNELS.rms_norm(x, weight, 1e-8), F.rms_norm(x.float(), (1000,), weight, 1e-8))
    close(KERNELS.gated_silu(x), F.silu(x[:, :500].float()) * x[:, 500:].float())
    y, angle = noise(2, 3, 4, 24, dtype=dtype), noise(2, 1, 1, 12)
    r, i = y[:, :2].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = [r * angle.cos() - i * angle.sin(), r * angle.sin() + i * angle.cos()]
    close(KERNELS.rope(y[:, :2], angle.cos(), angle.sin()), torch.stack(turned, -1).flatten(-2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tanh", [True, False])
def test_gated_sum(dtype, tanh):
    x, u, alpha = noise(2, 96, dtype=dtype), noise(2, 96, dtype=dtype) + 1, noise(1)
    sees = torch.tensor([True, False], device=DEVICE)
    for logits in (noise(2, 96, dtype=dtype), noise(1, 1)):
        gate = torch.tanh(logits.float()) if tanh else torch.sigmoid(logits.float() - 4.0)
        y, mean = KERNELS.gated_sum(x, u, logits, sees, alpha, shift=4.0, tanh=tanh)
        close(y, torch.where(sees[:, None], x + (alpha * gate * u.float()).to(dtype), x))
        close(mean, torch.where(sees, gate.expand(2, 96).mean(-1), 0.0))


@pytest.mark.parametrize("position", [None, 0, 63, 5000])
@pytest.mark.parametrize("coded", [False, True])
def test_attention_reads_what_is_filled(position, coded):
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
    found = KERNELS.attend(q, k, v, scales=scales, position=at, context=used)
    close(
        found, F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask)[:, :, 0]
    )


@pytest.mark.parametrize("rows", [1, 3] if DEVICE == "cuda" else [1])  # no bfloat16 dot is played
def test_int8_linear(rows):
    x, bias = noise(rows, 1100, dtype=torch.bfloat16), noise(70)
    codes = (noise(70, 1100) * 40).clamp(-127, 127).to(torch.int8)
    scales = noise(70).abs().bfloat16() / 100
    close(
        KERNELS.int8_linear(x, codes, scales, bias),
        F.linear(x.float(), codes * scales.float()[:, None], bias),
    )


@pytest.mark.parametrize("kv_cache", [None, "int8"])
@pytest.mark.parametrize("gate", [gates.Conditional(3, "tanh"), gates.Constant()])
def test_a_conversation_with_kernels(tmp_path, monkeypatch, gate, kv_cache):
    """More frames than the ring of the KV cache holds; in eager PyTorch and with the kernels."""
    model = exported.with_adapters(gate=gate)
    backbone = dataclasses.replace(model.backbone, layers=1, context=4)
    depth = dataclasses.replace(model.depformer, layers=1)
    model = dataclasses.replace(model, backbone=backbone, depformer=depth)
    _, folder = exported.write(model, "torch", tmp_path)
    said = []
    for kernels in (None, KERNELS):
        monkeypatch.setattr(triton_kernels, "loaded", lambda device, found=kernels: found)
        loaded = loading.open_folder(folder, dtype="float32", kv_cache=kv_cache)
        frames = agreement.talk(loaded, *exported.inputs(6, model))
        said.append([exported.stacked(frames, name) for name in ("text_logits", "hidden", "gates")])
    for plain, fused in zip(*said):
        bound = 1e-5 if kv_cache is None else 1e-2  # a code may fall to the other side
        assert np.abs(plain - fused).max() <= bound * np.abs(plain).max()
