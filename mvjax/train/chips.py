"""Published peak rates of accelerator chips, and the bandwidth that their links give to a collective."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal

from mvjax.train import tpu_slices

GIB = 2.0**30
# Share of the published memory that a program may use: runtime, fragmentation and code take the rest.
USABLE = {"tpu": 0.98, "gpu": 0.92}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peak rates of one device, as jax counts devices."""

    name: str  # as in a topology, such as v5e
    kind: Literal["tpu", "gpu"]
    peak_flops: float  # dense bfloat16 FLOP/s
    hbm_bytes: float
    hbm_bandwidth: float  # bytes/s between HBM and chip
    link_bandwidth: float  # bytes/s: of a link in one direction (TPU), into a device over all (GPU)
    torus_axes: int  # 0 where a switch connects every device with every other
    ring_length: int  # from which on an axis of a slice is closed to a ring
    source: str  # who publishes the numbers
    devices_per_chip: int = 1  # that jax shows
    # bytes/s that a device receives from other slices or nodes; None: not known
    network_bandwidth: float | None = None

    @property
    def link(self) -> str:
        """What joins the devices of a slice or node."""
        if self.kind == "tpu":
            return "ICI"
        return "NVLink" if self.link_bandwidth > 64e9 else "PCIe"


_TPU_DOCS = "Google Cloud TPU documentation, page {}: bidirectional ICI a chip / links / 2; DCN a pod or chip"

# tpu7x has two devices per chip: each has half of the chip's rates and memory, and shares its links.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * GIB, 1228e9, 50e9, 3, 4, _TPU_DOCS.format("v4")),
        Chip(
            "v5e", "tpu", 197e12, 16 * GIB, 819e9, 50e9, 2, 16, _TPU_DOCS.format("v5e"),
            network_bandwidth=6.4e12 / 256 / 8,
        ),
        Chip(
            "v5p", "tpu", 459e12, 95 * GIB, 2765e9, 100e9, 3, 4, _TPU_DOCS.format("v5p"),
            network_bandwidth=50e9 / 8,
        ),
        Chip(
            "v6e", "tpu", 918e12, 32 * GIB, 1638e9, 100e9, 2, 16, _TPU_DOCS.format("v6e"),
            network_bandwidth=25.6e12 / 256 / 8,
        ),
        Chip(
            "tpu7x", "tpu", 2307e12 / 2, 96 * GIB, 7380e9 / 2, 50e9, 3, 4,
            _TPU_DOCS.format("tpu7x"), devices_per_chip=2,
        ),
        Chip(
            "h100", "gpu", 989e12, 80e9, 3350e9, 450e9, 0, 0, "NVIDIA H100 SXM and DGX data sheets",
            network_bandwidth=400e9 / 8,
        ),
        Chip(
            "h200", "gpu", 989e12, 141e9, 4800e9, 450e9, 0, 0, "NVIDIA H200 SXM and DGX data sheets",
            network_bandwidth=400e9 / 8,
        ),
        Chip(
            "b200", "gpu", 2250e12, 180e9, 8000e9, 900e9, 0, 0, "NVIDIA HGX B200 and DGX data sheets",
            network_bandwidth=400e9 / 8,
        ),
        Chip(
            "a100", "gpu", 312e12, 80e9, 2039e9, 300e9, 0, 0, "NVIDIA A100 80GB SXM and DGX data sheets",
            network_bandwidth=200e9 / 8,
        ),
        Chip("l4", "gpu", 121e12, 24e9, 300e9, 32e9, 0, 0, "NVIDIA L4 data sheet; PCIe 4 x16"),
        Chip("l40s", "gpu", 362e12, 48e9, 864e9, 32e9, 0, 0, "NVIDIA L40S data sheet; PCIe 4 x16"),
    )
}  # fmt: skip


# Pattern of the name that jax gives a device (`device_kind`), and its row of CHIPS; the first match counts.
_DEVICE_KINDS = (
    (r"TPU v4", "v4"),
    (r"TPU v5( lite|e).*", "v5e"),
    (r"TPU v5p?", "v5p"),
    (r"TPU v6( lite|e).*", "v6e"),
    (r"TPU ?(v7|7x).*", "tpu7x"),
    (r".*H100.*80GB HBM3.*", "h100"),
    (r".*H200.*", "h200"),
    (r".*B200.*", "b200"),
    (r".*A100.*", "a100"),
    (r".*L40S.*", "l40s"),
    (r".*L4", "l4"),
)


def of_device(kind: str) -> Chip | None:
    """Returns the chip of a device by its `device_kind`; None if no peak rates are published, as for CPUs."""
    return next((CHIPS[name] for rule, name in _DEVICE_KINDS if re.fullmatch(rule, kind)), None)


@dataclasses.dataclass(frozen=True)
class Topology:
    """TPU slices or GPU nodes, such as v5e:8x8 or h100:2x8; `shape` is one's, in chips along each axis."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        """Number of devices, as jax counts them."""
        return self.slices * self.devices_per_slice

    @property
    def devices_per_slice(self) -> int:
        """As `devices`."""
        return math.prod(self.shape) * self.chip.devices_per_chip

    @property
    def usable_hbm(self) -> float:
        """Bytes of one device's HBM that a program may use."""
        return self.chip.hbm_bytes * USABLE[self.chip.kind]

    def group_bandwidth(self, coordinates: Sequence[Sequence[int]]) -> float:
        """Returns the bytes/s that the worst placed device of a group receives from the others.

        On a torus, where the group's chips have these coordinates: the links of a corner of the box that
        the group spans, two for an axis that is closed to a ring, one for any other along which it extends.
        Behind a switch: the device's port.
        """
        if self.chip.kind == "gpu":
            return self.chip.link_bandwidth
        links = 0
        for axis, size in enumerate(self.shape):
            extent = len({place[axis] for place in coordinates})
            links += (2 if extent == size and self._is_ring(axis) else 1) if extent > 1 else 0
        # two devices of one chip reach each other faster than over any link
        return max(links, 1) * self.chip.link_bandwidth

    def _is_ring(self, axis: int) -> bool:
        """v5e and v6e close an axis of 16 (a whole pod's); the others join whole cubes of 4 x 4 x 4."""
        if self.chip.torus_axes == 2:
            return self.shape[axis] == self.chip.ring_length
        return all(size % self.chip.ring_length == 0 for size in self.shape)


def topology(name: str, slices: int = 1) -> Topology:
    """Parses a name such as v5e:8x8, v5p:2x2x4 or h100:8, or Google's of a TPU slice, such as v5litepod-16.

    A size before the shape is a number of slices or GPU nodes, and so is `slices`: v5e:2x8x8, h100:2x8.

    Raises:
      ValueError: naming the known chips, the shape that the chip needs, or the slices that exist.
    """
    try:
        return _topology(name, slices)
    except ValueError as error:
        raise ValueError(f"--topology {name}: {error}") from None


def _topology(asked: str, slices: int) -> Topology:
    name = tpu_slices.translated(asked)
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in CHIPS:
        raise ValueError(
            "expected CHIP:SHAPE, such as v5e:8x8, v5p:2x2x4 or h100:8, or Google's name of a TPU slice,"
            f" such as v5litepod-16; chips: {', '.join(CHIPS)}"
        )
    chip, shape = CHIPS[match[1]], tuple(int(size) for size in match[2].split("x"))
    axes = max(chip.torus_axes, 1)
    if len(shape) == axes + 1 and slices == 1:
        slices, shape = shape[0], shape[1:]
    if len(shape) != axes or 0 in shape or slices < 1:
        form = {0: "a number", 2: "two sizes, such as 4x4", 3: "three sizes, such as 2x2x4"}
        several = "before them that of slices" if chip.kind == "tpu" else "before it that of nodes"
        raise ValueError(
            f"{chip.name} takes {form[chip.torus_axes]}, and {several}, all of 1 or more"
        )
    if chip.kind == "tpu":
        tpu_slices.check(chip.name, shape)
    if slices == 1:
        return Topology(f"{chip.name}:{'x'.join(map(str, shape))}", chip, shape)
    if chip.network_bandwidth is None:
        known = [one.name for one in CHIPS.values() if one.network_bandwidth]
        raise ValueError(
            f"the bandwidth between {chip.name} slices or nodes is not known, that of {', '.join(known)} is"
        )
    return Topology(f"{chip.name}:{slices}x{'x'.join(map(str, shape))}", chip, shape, slices)
