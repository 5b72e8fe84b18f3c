"""What a run needs on a slice of chips: memory by part, operations, traffic, and the step time they allow.

The step time is a roofline: the longest of three times, products at the peak rate, main memory at its
bandwidth, and collectives at their links' bandwidth, as if each hid behind the longest. That is what the
hardware allows and not a promise; beside it stands the same without any hiding: operation by operation the
longer of product and memory, and every collective after that. Where the devices are here, what was
measured on them stands beside both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mvjax.config import schema
from mvjax.plan import measure as measured
from mvjax.train import chips, sharding
from mvjax.train import flops as flops_lib

LASTING = ("frozen weights", "adapters", "optimizer", "batch")  # parts of memory, all the time


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step on one device, each alone.

    Attributes:
      compute: products, recomputation among them, at the peak rate.
      hbm: traffic with main memory.
      ici: collectives.
      serial: one operation after the other, nothing hidden.
    """

    compute: float
    hbm: float
    ici: float
    serial: float

    @property
    def step(self) -> float:
        """The roofline: the longest."""
        return max(self.compute, self.hbm, self.ici)

    @property
    def limit(self) -> str:
        """What the longest is."""
        names = {"compute": self.compute, "HBM": self.hbm, "ICI": self.ici}
        return max(names, key=lambda name: names[name])


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a topology.

    Attributes:
      run: with the mesh filled in.
      topology: the chips.
      flops: counted, over the global batch.
      memory: bytes on one device by part.
      needed: bytes in all on one device.
      room: bytes that a program may use.
      fits: whether it does.
      times: None if it does not fit.
      executed: operations of all devices that were found in the compiled program, or counted.
      recomputed: of these, for a second time.
      traffic: bytes between one device and its memory.
      collectives: bytes that one device receives, by kind.
      compiled: whether memory comes from the compiler, or from counting alone.
      read: whether operations and traffic come from the compiled program.
      seconds: that compiling took, now or when it was cached.
      measured: what the step took on devices that are here; `fits` is then their word.
      note: why nothing was measured, where it was asked for.
    """

    run: schema.Config
    topology: chips.Topology
    flops: flops_lib.StepFlops
    memory: Mapping[str, float]
    needed: float
    room: float
    fits: bool
    times: Times | None
    executed: float
    recomputed: float
    traffic: float
    collectives: Mapping[str, float]
    compiled: bool
    read: bool = False
    seconds: float = 0.0
    measured: measured.Measured | None = None
    note: str = ""

    @property
    def frames_per_second(self) -> float:
        """Positions of all rows a second."""
        return flops_lib.frames_per_step(self.run.data) / self.times.step if self.times else 0.0

    @property
    def utilization(self) -> float:
        """Frozen-aware model FLOP utilization at the roofline."""
        return self._utilization(self.times.step) if self.times else 0.0

    @property
    def serial_utilization(self) -> float:
        """The same with nothing hidden."""
        return self._utilization(self.times.serial) if self.times else 0.0

    @property
    def hours(self) -> float:
        """For `train.steps`."""
        return self.run.train.steps * self.times.step / 3600 if self.times else 0.0

    @property
    def measured_frames_per_second(self) -> float:
        """Positions of all rows a second, as measured; 0 where nothing was, or it does not fit."""
        one = self.measured
        return flops_lib.frames_per_step(self.run.data) / one.seconds if one and one.fits else 0.0

    @property
    def measured_utilization(self) -> float:
        """Frozen-aware model FLOP utilization, as measured; 0 likewise."""
        one = self.measured
        return self._utilization(one.seconds) if one and one.fits else 0.0

    def _utilization(self, seconds: float) -> float:
        peak = self.topology.chip.peak_flops * self.topology.devices
        return self.flops.model_flops / (seconds * peak)


def with_mesh(run: schema.Config, devices: int) -> schema.Config:
    """Returns the run with the -1 of its mesh filled in.

    Raises:
      ValueError: if the mesh does not multiply to the devices.
    """
    shape = sharding.mesh_shape(run.mesh, devices)
    mesh = schema.MeshConfig(**dict(zip(sharding.AXES, shape)))
    return dataclasses.replace(run, mesh=mesh)
