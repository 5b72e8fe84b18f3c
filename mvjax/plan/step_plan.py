"""What a training step needs on a topology: peak HBM by part, FLOPs, traffic, and a roofline of its time.

The roofline is the longest of three times: matmuls at peak FLOP/s, HBM traffic at HBM bandwidth, collectives
at link bandwidth, as if all three overlapped fully. It is a lower bound, not a promise. Without overlap, each
operation takes the longer of its matmul and its HBM time, and every collective is added to that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from mvjax.config import schema
from mvjax.plan import measure
from mvjax.train import chips
from mvjax.train import flops as flops_lib

PERSISTENT = ("frozen weights", "adapters", "optimizer", "batch")  # memory held between steps


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Seconds per step on one device."""

    compute: float  # matmuls, recomputed ones included, at peak FLOP/s
    hbm: float  # HBM traffic
    collectives: float  # bytes received over the links
    no_overlap: float  # one operation after the other, no compute/communication overlap
    kernels: float | None = None  # of a GPU: one after the other, at the rates that kernels reached

    @property
    def roofline(self) -> float:
        """The longest of the three."""
        return max(self.compute, self.hbm, self.collectives)

    @property
    def bound(self) -> str:
        """Which of the three is the longest."""
        times = {"compute": self.compute, "HBM": self.hbm, "collectives": self.collectives}
        return max(times, key=times.__getitem__)

    @property
    def expected(self) -> float:
        """The time that settings are ranked by: a fifth of what could overlap does not."""
        if self.kernels is None:
            return 0.8 * self.roofline + 0.2 * self.no_overlap
        return max(self.kernels, self.collectives) + 0.2 * min(self.kernels, self.collectives)


class Kernels(NamedTuple):
    """What the kernels of one kind do in one step on one device; bytes are read or written."""

    times: float
    flops: float
    hbm_bytes: float


class Speed(NamedTuple):
    """What a time per step amounts to: throughput, MFU (of model FLOPs), and hours for `train.steps`."""

    frames_per_second: float
    mfu: float
    hours: float


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The step of a run on a topology."""

    run: schema.Config  # its mesh filled in
    topology: chips.Topology
    flops: flops_lib.StepFlops  # analytic count, over the global batch
    memory: Mapping[str, float]  # bytes on one device, by part
    peak_hbm: float  # bytes on one device in all
    hbm_limit: float  # bytes of one device that a program may use
    fits: bool  # whether it does; where the step was measured, whether it ran
    times: StepTimes | None  # None if the compiler says that it does not fit
    executed_flops: float  # of all devices, recomputation included; compiled or estimated
    remat_flops: float  # of these, recomputed in the backward pass
    hbm_traffic: float  # bytes between one device and its HBM
    collective_bytes: Mapping[str, float]  # bytes that one device receives, by kind of collective
    kernels: Mapping[str, Kernels] = dataclasses.field(default_factory=dict)  # by kind, if from_hlo
    compiled: bool = False  # whether memory is the compiler's; False: an analytic estimate
    from_hlo: bool = (
        False  # whether FLOPs, traffic and times too are read from the compiled program
    )
    compile_seconds: float = 0.0  # that compiling took, now or when it was cached
    measured: measure.Measured | None = None  # the step on devices that are here
    note: str = ""  # why nothing was measured or compiled, where it was asked for

    def speed(self, seconds: float) -> Speed:
        """Returns throughput, MFU and hours at so many seconds per step."""
        peak = self.topology.chip.peak_flops * self.topology.devices
        frames = flops_lib.frames_per_step(self.run.data)
        throughput = flops_lib.Throughput(frames, self.flops.model_flops, peak)
        mfu = throughput.mfu(seconds) or 0.0
        hours = self.run.train.steps * seconds / 3600
        return Speed(throughput.frames_per_second(seconds), mfu, hours)
