"""Rematerialization, attention kernel and sharding of activations; nothing here changes what is computed.

What the backward pass needs of a frozen layer. The gradient of the input of a frozen matmul needs the weights
only, so of a block it needs: the residual stream (the carry of the scan, always saved); of
self-attention the rotated q, k, v, the result with its log-sum-exp, and the projected result; of
cross-attention, which is trained, the query, the result and the projected result; and of the MLP its two
halves. Everything in between is elementwise, but for the gate. Per frame and layer, in FLOPs (of the
released sizes: D 4096, F 11264, S 1024, gate G 512, self-attention over 625 keys on average; the forward pass
is 513 M) and in bfloat16 values saved:

    remat        recomputed                                           saved
    none         nothing                                     0        all that autodiff saves
    frozen       gate: 4 D G                                 8 M      9 D + 2 F    119 kB
    attention    the same and MLP in: 4 D F                  193 M    9 D           74 kB
    full         the same, 12 D^2 and attention: 4 D (625+S) 421 M    D              8 kB

MLP out (2 D F) is never recomputed: nothing needs its result. The plain attention recomputes its logits under
"frozen" and "attention" too, and cuDNN, whose log-sum-exp cannot be named, its whole kernel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mvjax.config import schema

ROWS = ("data", "fsdp")  # the mesh axes that batch rows are sharded over
HEADS = "tensor"  # the mesh axis that attention heads are sharded over

MLP_HALVES = "mlp_halves"
ATTENTION = "attention"
_SAVED = {"frozen": (ATTENTION, MLP_HALVES), "attention": (ATTENTION,), "full": ()}

_FEW_LAYERS = 8

Kernel = Literal["plain", "splash", "cudnn"]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to compute the model."""

    remat: schema.Remat = "none"  # what of a block is saved for the backward pass
    kernel: Kernel = "plain"  # of attention over whole sequences, where it can serve
    mesh: Mesh | None = None  # of several devices: rows of activations are sharded over `ROWS`
    tpu: bool = False  # arranged for XLA's TPU compiler: see `on`
    interpret: bool = False  # run the TPU kernel step by step on any device, to test it

    @property
    def flat(self) -> bool:
        """Whether einsums are computed as matmuls, with axes merged: see `layers.contract`.

        Only on one CPU: merging copies on a TPU, and of several devices each may hold a part of an axis.
        """
        return self.mesh is not None and [d.platform for d in self.mesh.devices.flat] == ["cpu"]

    def unroll(self, layers: int) -> int:
        """Returns how many layers in a row a scan computes as straight code: on one CPU all, if they are few.

        What a loop saves for the backward pass XLA's CPU backend copies into stacks and out of them again,
        which takes a fifth of a step of a small model; compilation takes as long either way.
        """
        return layers if self.flat and layers <= _FEW_LAYERS else 1

    @property
    def row_shards(self) -> int:
        """Into how many shards rows are split."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in ROWS)

    def shard_rows(self, x: Array) -> Array:
        """Returns x with its first axis sharded over `ROWS` and no other."""
        return self.shard(x, ROWS)

    def shard_lookup(self, x: Array) -> Array:
        """Returns embeddings as their table is sharded: rows over `data`, columns over `fsdp`.

        Sums of embeddings stay there; `shard_rows` then moves the sum once.
        """
        return self.shard(x, ROWS[0], *[None] * (x.ndim - 2), ROWS[1])

    def shard(self, x: Array, *axes: Any) -> Array:
        """Returns x with its first axes sharded over these mesh axes (None: whole), the rest whole."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))

    @property
    def gathers(self) -> bool:
        """Whether kernels are gathered on TPUs."""
        return self.tpu and self.mesh is not None and self.mesh.shape[ROWS[1]] > 1

    def whole(self, kernel: Array, *axes: Any) -> Array:
        """Returns a kernel of a layer gathered, but for these axes, where XLA would do it piece by piece.

        On TPUs it turns a matmul with a sharded kernel into one for each shard, whose sums go through HBM.
        """
        return self.shard(kernel, *axes) if self.gathers else kernel

    def block(self, module: Any) -> Any:
        """Returns the module class with the checkpoint policy that `remat` names."""
        if self.remat == "none":
            return module
        policy = jax.checkpoint_policies.save_only_these_names(*_SAVED[self.remat])
        return nn.remat(module, prevent_cse=False, policy=policy)


PLAIN = Compute()


def on(mesh: Mesh, train: schema.TrainConfig, model: schema.ModelConfig) -> Compute:
    """Returns how a run computes on a mesh: by the mesh's devices, which may not be this process's.

    For a TPU rows of both kinds are packed: weights are gathered and read once for both. The halves of the
    MLP are matmuls of their own, and rotary positions are turned by a matmul, which spares copies. A GPU
    would lose memory by packing: XLA is done with one kind of rows there before it begins the other.
    """
    platform = mesh.devices.flat[0].platform
    attention = kernel(train.attention, platform, model.dtype)
    return Compute(train.remat, attention, mesh, tpu=platform == "tpu")


def kernel(asked: schema.AttentionKernel, platform: str, dtype: schema.Dtype) -> Kernel:
    """Returns the attention kernel for devices of a platform, as JAX names it.

    Raises:
      ValueError: if the kernel asked for does not run on such devices.
    """
    kernels: dict[str, Kernel] = {"tpu": "splash", "gpu": "cudnn"}
    best = kernels.get(platform, "plain")
    if best == "cudnn" and dtype == "float32":
        best = "plain"  # cuDNN's kernel takes 16-bit values only
    if asked not in ("auto", "plain", best):
        raise ValueError(
            f"train.attention: {asked!r} cannot run {dtype} on {platform} devices; "
            f"'auto' takes {best!r} there"
        )
    return "plain" if asked == "plain" else best


def remat_saved(name: str, *values: Array) -> Any:
    """Returns the values (or the one), marked for the checkpoint policies that save this name."""
    named = tuple(checkpoint_name(value, name) for value in values)
    return named if len(named) > 1 else next(iter(named))
