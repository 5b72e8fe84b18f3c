"""Flash attention, a fused kernel that never stores all logits: splash on TPU, cuDNN on GPU."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mvjax.nn import compute as compute_lib

LANES = 128  # of a TPU: sequence blocks are multiples of it
LONGEST_BLOCK = 640  # frames; the kernels' logits of 640 x 640 fit VMEM beside their inputs


def splash_supports(T: int, S: int, *, causal: bool) -> bool:
    """Returns whether splash can run: keys in whole blocks, or padding that no query attends to."""
    return T >= LANES and (causal or S % LANES == 0)


def cudnn_supports(H: int) -> bool:
    """Returns whether cuDNN can run: heads of at most 128, in steps of 8."""
    return H % 8 == 0 and H <= 128


def splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    *,
    context: int | None,
    compute: compute_lib.Compute,
) -> Float[Array, "B T N H"]:
    """Attends causally over `context` keys, or to all keys (None); rows and heads stay on their devices."""
    local = functools.partial(_splash_local, context=context, interpret=compute.interpret)
    if compute.mesh is None or compute.mesh.size == 1:
        return local(q, k, v)
    spec = PartitionSpec(compute_lib.ROWS, None, compute_lib.HEADS, None)
    # check_vma=False: the check does not support pallas calls
    run = jax.shard_map(
        local, mesh=compute.mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
    )
    return run(q, k, v)


def cudnn(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    *,
    context: int | None,
) -> Float[Array, "B T N H"]:
    """Attends causally over `context` keys, or to all keys (None)."""
    window = None if context is None or context >= q.shape[1] else (context - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=context is not None, local_window_size=window, implementation="cudnn"
    )


def _splash_local(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    *,
    context: int | None,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """What one device does: pads sequences to whole blocks and runs the kernel on every row."""
    T, N, H = q.shape[1:]
    scaled = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype)  # the kernel does not scale
    q, k, v = (
        jnp.pad(jnp.einsum("BTNH->BNTH", x), ((0, 0), (0, 0), (0, -x.shape[1] % LANES), (0, 0)))
        for x in (scaled, k, v)
    )
    run = _splash_kernel(q.shape[2], k.shape[2], N, context=context, interpret=interpret)
    u: Array = jax.vmap(run)(q, k, v)  # pyright: ignore[reportAssignmentType]: residuals are not asked for
    return jnp.einsum("BNTH->BTNH", u[:, :, :T])


def _splash_kernel(T: int, S: int, heads: int, *, context: int | None, interpret: bool):
    if context is None:
        mask = splash_attention_mask.FullMask((T, S))
    elif context >= T:
        mask = splash_attention_mask.CausalMask((T, S))
    else:
        mask = splash_attention_mask.LocalMask((T, S), (context - 1, 0), offset=0)
    rows, keys = _block(T), _block(S)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=rows,
        block_kv=keys,
        block_q_dkv=rows,
        block_kv_dkv=keys,
        use_fused_bwd_kernel=True,  # 5 matmuls a block in place of 7
    )
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=compute_lib.ATTENTION,
        interpret=interpret,
    )


def _block(length: int) -> int:
    """Returns the longest block that divides the length."""
    return max(b for b in range(LANES, LONGEST_BLOCK + 1, LANES) if length % b == 0)
