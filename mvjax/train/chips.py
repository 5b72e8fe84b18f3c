"""Published rates of accelerator chips, and what their wiring gives to a collective."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal

GIB = 2.0**30
# Of the memory that is published: runtime, fragmentation and code take the rest.
USABLE = {"tpu": 0.98, "gpu": 0.92}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as jax counts them, at its published rates.

    Attributes:
      name: as in a topology.
      kind: who compiles for it.
      flops: dense bfloat16 operations a second.
      hbm_bytes: memory.
      hbm_rate: bytes a second between memory and chip.
      link_rate: bytes a second over one link in one direction (TPU), or into one device over all (GPU).
      axes: dimensions of the torus; 0 where every device reaches every other through a switch.
      wraps: length from which on an axis of a slice is closed to a ring.
      devices: that jax shows for one chip.
      source: who publishes the numbers.
    """

    name: str
    kind: Literal["tpu", "gpu"]
    flops: float
    hbm_bytes: float
    hbm_rate: float
    link_rate: float
    axes: int
    wraps: int
    source: str
    devices: int = 1


_TPU_DOCS = "Google Cloud TPU documentation, page {}: bidirectional ICI a chip / links / 2"

# Two devices a chip (tpu7x): each has half of the chip's rates and memory, and shares its links.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * GIB, 1228e9, 50e9, 3, 4, _TPU_DOCS.format("v4")),
        Chip("v5e", "tpu", 197e12, 16 * GIB, 819e9, 50e9, 2, 16, _TPU_DOCS.format("v5e")),
        Chip("v5p", "tpu", 459e12, 95 * GIB, 2765e9, 100e9, 3, 4, _TPU_DOCS.format("v5p")),
        Chip("v6e", "tpu", 918e12, 32 * GIB, 1638e9, 100e9, 2, 16, _TPU_DOCS.format("v6e")),
        Chip(
            "tpu7x", "tpu", 2307e12 / 2, 96 * GIB, 7380e9 / 2, 50e9, 3, 4,
            _TPU_DOCS.format("tpu7x"), devices=2,
        ),
        Chip("h100", "gpu", 989e12, 80e9, 3350e9, 450e9, 0, 0, "NVIDIA H100 SXM data sheet"),
        Chip("h200", "gpu", 989e12, 141e9, 4800e9, 450e9, 0, 0, "NVIDIA H200 SXM data sheet"),
        Chip("a100", "gpu", 312e12, 80e9, 2039e9, 300e9, 0, 0, "NVIDIA A100 80GB SXM data sheet"),
        Chip("l4", "gpu", 121e12, 24e9, 300e9, 32e9, 0, 0, "NVIDIA L4 data sheet; PCIe 4 x16"),
        Chip("l40s", "gpu", 362e12, 48e9, 864e9, 32e9, 0, 0, "NVIDIA L40S data sheet; PCIe 4 x16"),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips of one kind, and how they stand.

    Attributes:
      name: as it was asked for, such as v5e:8x8 or h100:8.
      chip: the rates.
      shape: chips along each axis.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """As jax counts them."""
        return math.prod(self.shape) * self.chip.devices

    def inflow(self, coordinates: Sequence[Sequence[int]]) -> float:
        """Returns bytes a second that the worst placed device of a group can receive from the others.

        On a torus: the links of a corner of the box that the group spans, two for an axis that is
        closed to a ring, one for any other along which it extends. Behind a switch: the device's port.

        Args:
          coordinates: of the group's chips on the torus.
        """
        if self.chip.kind == "gpu":
            return self.chip.link_rate
        links = 0
        for axis, size in enumerate(self.shape):
            extent = len({place[axis] for place in coordinates})
            links += (2 if extent == size and self.is_ring(axis) else 1) if extent > 1 else 0
        # one chip that is two devices: they reach each other faster than any link
        return max(links, 1) * self.chip.link_rate

    def is_ring(self, axis: int) -> bool:
        """Whether the first and last chip of an axis are neighbors.

        v5e and v6e close an axis of 16, a whole pod's; the others join whole cubes of 4 x 4 x 4.
        """
        if self.chip.axes == 2:
            return self.shape[axis] == self.chip.wraps
        return all(size % self.chip.wraps == 0 for size in self.shape)


def topology(name: str) -> Topology:
    """Reads a name such as v5e:8x8, v5p:2x2x4 or h100:8.

    Raises:
      ValueError: naming the known chips, or the shape that the chip would need.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not found or found[1] not in CHIPS:
        raise ValueError(
            f"--topology {name}: expected CHIP:SHAPE, such as v5e:8x8, v5p:2x2x4 or h100:8; "
            f"chips: {', '.join(CHIPS)}"
        )
    chip, shape = CHIPS[found[1]], tuple(int(size) for size in found[2].split("x"))
    if len(shape) != max(chip.axes, 1) or 0 in shape:
        form = {0: "a number", 2: "two sizes, such as 4x4", 3: "three sizes, such as 2x2x4"}
        raise ValueError(f"--topology {name}: {chip.name} takes {form[chip.axes]}")
    return Topology(name, chip, shape)
