"""What one step is worth: positions, operations, and the published peak of the devices it runs on."""

from __future__ import annotations

import re
from typing import NamedTuple

from jax.sharding import Mesh

from mvjax.config import schema
from mvjax.train import chips
from mvjax.train import flops as flops_lib

# As jax names devices, and a row of `chips.CHIPS`; the first match counts.
KINDS = (
    (r"TPU v4", "v4"),
    (r"TPU v5( lite|e).*", "v5e"),
    (r"TPU v5p?", "v5p"),
    (r"TPU v6( lite|e).*", "v6e"),
    (r"TPU ?(v7|7x).*", "tpu7x"),
    (r".*H100.*80GB HBM3.*", "h100"),
    (r".*H200.*", "h200"),
    (r".*A100.*", "a100"),
    (r".*L40S.*", "l40s"),
    (r".*L4", "l4"),
)


class Effort(NamedTuple):
    """Of one step.

    Attributes:
      frames: positions of the global batch: frames of speech rows, tokens of speechless ones.
      flops: operations that the step needs, frozen-aware (`count.step_flops`).
      peak: dense bfloat16 operations a second of all devices together; None where nobody publishes them,
        as for a CPU.
    """

    frames: int
    flops: float = 0.0
    peak: float | None = None


def of(run: schema.Config, mesh: Mesh) -> Effort:
    """Returns what a step of the run is worth on the devices of the mesh."""
    found = chip(mesh.devices.flat[0].device_kind)
    flops = flops_lib.step_flops(run).frozen_aware
    return Effort(flops_lib.frames(run.data), flops, found and found.flops * mesh.size)


def chip(kind: str) -> chips.Chip | None:
    """Returns the published rates of a device by the name that jax gives it, if they are known."""
    names = [name for pattern, name in KINDS if re.fullmatch(pattern, kind)]
    return chips.CHIPS[names[0]] if names else None
