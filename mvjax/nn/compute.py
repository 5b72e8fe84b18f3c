"""How the model is computed on which devices; nothing here changes what it computes.

What a frozen layer keeps. The gradient with respect to the input of a frozen product needs the weights
only, so of a block the backward pass needs: the residual stream (the carry of the scan, always kept); of
self-attention the rotated q, k, v, the result with its log-sum-exp, and the projected result; of
cross-attention, which is trained, the query, the result and the projected result; and of the MLP its two
halves. Everything between these is elementwise, but for the gate. Per frame and layer, in FLOPs (of the
released sizes: D 4096, F 11264, S 1024, gate G 512, self-attention over 625 keys on average; the forward pass
is 513 M) and in bfloat16 values kept:

    policy       recomputed                                           kept
    none         nothing                                     0        all that autodiff keeps
    frozen       gate: 4 D G                                 8 M      9 D + 2 F    119 kB
    attention    the same and MLP in: 4 D F                  193 M    9 D           74 kB
    full         the same, 12 D^2 and attention: 4 D (625+S) 421 M    D              8 kB

MLP out (2 D F) is never recomputed: nothing needs its result. The plain attention recomputes its logits under
"frozen" and "attention" too, and cuDNN, whose log-sum-exp cannot be named, its whole kernel.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mvjax.config import schema

ROWS = ("data", "fsdp")  # the mesh axes that batch rows are spread over
HEADS = "tensor"  # the mesh axis that attention heads are spread over

MLP_HALVES = "mlp_halves"
ATTENTION = "attention"
_KEPT = {"frozen": (ATTENTION, MLP_HALVES), "attention": (ATTENTION,), "full": ()}

Kernel = Literal["plain", "splash", "cudnn"]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to compute.

    Attributes:
      remat: what the backward pass keeps of a block.
      kernel: of attention over whole sequences; where a kernel cannot serve, the plain one does.
      mesh: the devices, if there are several: rows of activations are kept on `ROWS`.
      interpret: run the TPU kernel step by step on any device, to test it.
    """

    remat: schema.Remat = "none"
    kernel: Kernel = "plain"
    mesh: Mesh | None = None
    interpret: bool = False

    @property
    def flat(self) -> bool:
        """Whether products are made of matrices, with axes merged: see `layers.contract`.

        Only on one CPU: of several devices each may hold a part of an axis, and a TPU would copy the merged.
        """
        return self.mesh is not None and [d.platform for d in self.mesh.devices.flat] == ["cpu"]

    def rows(self, x: Array) -> Array:
        """Returns x with its first axis spread over `ROWS` and nothing else."""
        return self.spread(x, ROWS)

    def table(self, x: Array) -> Array:
        """Returns what was looked up in a table whose columns lie on `fsdp`: those columns, `data`'s rows.

        Sums of lookups stay there; `rows` then moves the sum once.
        """
        return self.spread(x, ROWS[0], *[None] * (x.ndim - 2), ROWS[1])

    def spread(self, x: Array, *axes: Any) -> Array:
        """Returns x with its first axes spread over these mesh axes (None: whole), the rest whole."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))

    def block(self, module: Any) -> Any:
        """Returns the module class whose backward pass keeps what `remat` says."""
        if self.remat == "none":
            return module
        policy = jax.checkpoint_policies.save_only_these_names(*_KEPT[self.remat])
        return nn.remat(module, prevent_cse=False, policy=policy)


PLAIN = Compute()


def on(mesh: Mesh, train: schema.TrainConfig, model: schema.ModelConfig) -> Compute:
    """Returns how a run computes on a mesh, by what its devices are, not by where this process runs."""
    platform = mesh.devices.flat[0].platform
    return Compute(train.remat, kernel(train.attention, platform, model.dtype), mesh)


def kernel(asked: schema.AttentionKernel, platform: str, dtype: schema.Dtype) -> Kernel:
    """Returns the attention kernel for devices of a platform, as JAX names it.

    Raises:
      ValueError: if a kernel of another kind of device is asked for.
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


def kept(name: str, *values: Array) -> Any:
    """Names values for the policies; returns them (or the one)."""
    named = tuple(checkpoint_name(value, name) for value in values)
    return named if len(named) > 1 else next(iter(named))
