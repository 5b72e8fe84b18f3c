"""The fused kernels give what the plain attention gives, and each platform gets its own."""

import closeness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvjax.config import schema
from mvjax.nn import attention, flash
from mvjax.nn import compute as compute_lib
from mvjax.train import sharding

B, T, N, H, S = 4, 130, 2, 8, 128


def noise(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def mesh():
    return sharding.make_mesh(schema.MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.mark.parametrize(
    ("context", "meshed"), [(40, False), (40, True), (3000, False), (None, True)]
)
def test_splash_equals_the_plain_attention(context, meshed):
    how = compute_lib.Compute("none", "splash", mesh() if meshed else None, interpret=True)
    keys = S if context is None else T
    q, k, v = (noise(B, n, N, H, seed=i) for i, n in enumerate((T, keys, keys)))
    weight = noise(B, T, N, H, seed=3)

    def value(q, k, v, how):
        u = attention.attend_by_kernel(q, k, v, context=context, compute=how)
        return jnp.sum(u * weight), u

    run = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True), static_argnums=3)
    assert "pallas_call" in str(jax.make_jaxpr(run, static_argnums=3)(q, k, v, how))
    (grads, u), (expected, plain) = run(q, k, v, how), run(q, k, v, compute_lib.PLAIN)
    closeness.assert_close(u, plain)
    for got, want in zip(grads, expected, strict=True):
        closeness.assert_close(got, want)


@pytest.mark.parametrize(("frames", "keys"), [(127, 256), (256, 130)])
def test_splash_leaves_what_it_cannot_do_to_the_plain_attention(frames, keys):
    """Few frames; image tokens that fill no whole block."""
    how = compute_lib.Compute("none", "splash")
    q, k = noise(2, frames, 1, 4, seed=0), noise(2, keys, 1, 4, seed=1)
    program = jax.make_jaxpr(lambda: attention.attend_by_kernel(q, k, k, context=None, compute=how))
    assert "pallas_call" not in str(program())


@pytest.mark.parametrize("context", [50, 3000, None])
def test_cudnn_is_called_for_cuda(monkeypatch, context):
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)  # there is no GPU here
    how = compute_lib.Compute("none", "cudnn")
    x = jax.ShapeDtypeStruct((2, 100, 4, 16), jnp.bfloat16)

    def value(q, k, v):
        u = attention.attend_by_kernel(q, k, v, context=context, compute=how)
        return jnp.sum(u.astype(jnp.float32))

    grad = jax.jit(jax.grad(value, argnums=(0, 1, 2)))
    text = grad.trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    assert ("mask_type\\22: \\22CAUSAL" in text) == (context is not None)
    assert ("sliding_window_length\\22: 50" in text) == (context == 50)


def test_the_windowed_attention_that_cudnn_is_asked_for_is_ours():
    """jax.nn's own XLA code stands in for cuDNN: the same arguments, another implementation."""
    q, k, v = (noise(2, 9, 3, 8, seed=i) for i in range(3))
    u = jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=(3, 0), implementation="xla"
    )
    plain = attention.attend_by_kernel(q, k, v, context=4)
    np.testing.assert_allclose(u, plain, atol=1e-6)


def test_heads_that_cudnn_cannot_do():
    assert flash.cudnn_supports(72) and flash.cudnn_supports(128)
    assert not flash.cudnn_supports(6) and not flash.cudnn_supports(256)


def test_the_kernel_is_chosen_by_the_devices_of_the_mesh():
    kernels = {p: compute_lib.kernel("auto", p, "bfloat16") for p in ("tpu", "gpu", "cpu")}
    assert kernels == {"tpu": "splash", "gpu": "cudnn", "cpu": "plain"}
    assert compute_lib.kernel("auto", "gpu", "float32") == "plain"
    assert compute_lib.kernel("plain", "tpu", "bfloat16") == "plain"
    with pytest.raises(ValueError, match=r"attention: 'splash' cannot run bfloat16 on gpu devices"):
        compute_lib.kernel("splash", "gpu", "bfloat16")
    run = compute_lib.on(mesh(), schema.TrainConfig(), schema.ModelConfig())
    assert (run.kernel, run.remat) == ("plain", "full")
