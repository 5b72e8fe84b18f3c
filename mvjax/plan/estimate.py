"""Analytic estimate of a plan: to choose which settings to compile, or where there is no compiler.

Constants of traffic and of what is kept are those of compiled 8.3 B steps (BENCHMARKS.md, "Plans").
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from mvjax import tree
from mvjax.config import schema
from mvjax.data import batch_spec
from mvjax.plan import gpu_targets, hlo_cost, step_plan
from mvjax.train import chips, load, sharding
from mvjax.train import flops as flops_lib

_SHARED = re.compile(r"xa/(q|out)/|gate/")  # adapters that all layers share
# What the backward pass computes again of a block's matmuls, by the share of their weights.
_READ_AGAIN = {"none": 0.0, "frozen": 0.0, "attention": 0.45, "full": 0.78}


class _Traffic(NamedTuple):
    """Bytes through HBM, as XLA compiles for TPUs or GPUs.

    Attributes:
      per_frame: values per frame and layer that move whole, in D, and that are split over `tensor`, in D + F.
      kept: times that a kept activation moves: written and read, and copied into and out of its stack.
      weights: times that a layer's weights move in a pass: read, or first copied out of their stack.
      codes: the same of int8 codes, which are read, and written and read in bfloat16.
    """

    per_frame: tuple[float, float]
    kept: float
    weights: float
    codes: float


_TRAFFIC = {
    "tpu": _Traffic((0, 52), kept=2, weights=2, codes=1),
    "gpu": _Traffic((128, 32), kept=4, weights=3, codes=5),
}


def estimated_plan(
    run: schema.Config, topology: chips.Topology, *, params: load.ModelParams | None = None
) -> step_plan.StepPlan:
    """Estimates memory, FLOPs and traffic of a run whose mesh has no -1 left.

    Memory: parameters, optimizer state and batch exactly; of activations what `train.remat` keeps, and the
    working set of one layer. HBM traffic: the weights once per pass, kept activations written and read.
    Collectives: weights gathered over `fsdp` once per pass, the residual stream reduced over `tensor`,
    gradients reduced over all devices. `params` are ShapeDtypeStructs, if known already.
    """
    sizes = _Sizes(run, topology, params or load.abstract_params(run))
    flops = flops_lib.step_flops(run)
    executed = flops.model_flops + flops.remat
    memory, traffic, received = sizes.memory(), sizes.hbm_traffic(), sizes.collectives()
    chip = topology.chip
    compute = executed / topology.devices / chip.peak_flops
    hbm = traffic / chip.hbm_bandwidth
    collectives = sum((size / bandwidth for size, bandwidth in received.values()), 0.0)
    return step_plan.StepPlan(
        run=run,
        topology=topology,
        flops=flops,
        memory=memory,
        peak_hbm=sum(memory.values()),
        hbm_limit=topology.usable_hbm,
        fits=sum(memory.values()) <= topology.usable_hbm,
        times=step_plan.StepTimes(compute, hbm, collectives, compute + hbm + collectives),
        executed_flops=executed,
        remat_flops=flops.remat,
        hbm_traffic=traffic,
        collective_bytes={kind: size for kind, (size, _) in received.items()},
    )


class _Sizes:
    """Bytes and frames of one step on one device."""

    def __init__(
        self, run: schema.Config, topology: chips.Topology, params: load.ModelParams
    ) -> None:
        data, c = run.data, run.model.backbone
        self.run, self.topology, self.mesh = run, topology, run.mesh
        self.shards = run.mesh.data * run.mesh.fsdp
        self.rows = (data.speech_rows + data.speechless_rows) / self.shards
        self.frames = flops_lib.frames_per_step(data) / self.shards
        speech = data.speech_rows * data.speech_frames / self.shards
        self.parts = [frames for frames in (speech, self.frames - speech) if frames]
        self.gpus = topology.chip.kind == "gpu"
        self.itemsize = jnp.dtype(run.model.dtype).itemsize  # of an activation
        self.layers, self.D, self.F = c.layers, c.width, c.hidden
        # forward and backward; on a TPU both parts of a batch go through the layers together
        self.passes = 2 * (len(self.parts) if self.gpus else 1) * run.train.grad_accum_steps
        self.adapters = _bytes(params.adapters, run.mesh)
        self.frozen = _bytes(params.frozen, run.mesh)
        # gathered for a pass: all but the embeddings, whose rows are looked up where they lie
        gathered = {p: v for p, v in tree.flatten(params.frozen).items() if "_emb/" not in p}
        gathered_on = schema.MeshConfig(1, 1, run.mesh.tensor)
        self.gathered = _bytes(tree.unflatten(gathered), gathered_on, times=self._share_read)
        codes = {p: v for p, v in gathered.items() if v.dtype == jnp.int8}
        self.codes = (
            _bytes(tree.unflatten(codes), gathered_on, times=self._share_read) if codes else 0.0
        )
        # adapters are gathered, and their gradients reduced, in the activations' dtype
        self.adapters_gathered, self.gradients = (
            _bytes(params.adapters, gathered_on, times=times) * self.itemsize / 4
            for times in (lambda path: 1, self._uses)
        )
        self.summed = _bytes(params.adapters, run.mesh, times=self._share_of_float32)

    def memory(self) -> dict[str, float]:
        """Returns bytes by part."""
        c, train, tensor = self.run.model, self.run.train, self.mesh.tensor
        states = 2 + (self.run.optim.ema_decay is not None)
        batch = batch_spec.batch_spec(self.run)
        arrays = (*batch.speech, *batch.speechless)
        frames = self.frames / train.grad_accum_steps
        # a GPU alone, and those before Hopper, are done with one part of the batch before the other
        apart = self.gpus and (
            self.topology.devices == 1 or not gpu_targets.is_hopper_or_newer(self.topology.chip)
        )
        alive = max(self.parts) if apart else self.frames
        kept = alive / train.grad_accum_steps * self._kept() * self.layers
        layer = self.gathered / self.layers if self.mesh.fsdp > 1 else 0.0
        working = 2 * layer + frames * self.itemsize * (4 * self.D + 4 * self.F / tensor)
        logits = train.loss_chunk * self.rows * c.text_vocab * (4 + self.itemsize) / tensor
        if self.gpus and self.codes:  # the MLP's weights of one layer, in the activations' dtype
            working += 3 * self.D * self.F / tensor * self.itemsize
        keys_values = 2 * self.rows * c.siglip.tokens * self.D * self.itemsize / tensor
        return {
            "frozen weights": self.frozen,
            "adapters": self.adapters,
            "optimizer": states * self.adapters,
            "batch": sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays) / self.shards,
            "gradients": self.adapters,
            "kept activations": kept,
            "working set": working + logits + 2 * keys_values,
        }

    def collectives(self) -> dict[str, tuple[float, float]]:
        """Returns {kind: (bytes that one device receives per step, bytes/s)}."""
        m, received = self.mesh, {}
        if m.fsdp > 1:
            others = (m.fsdp - 1) / m.fsdp
            gathered = self.passes * (self.gathered + self.adapters_gathered) * others
            received["all-gather"] = (gathered, self._bandwidth(m.fsdp))
        n, slices = self.shards // self.topology.slices, self.topology.slices
        if slices > 1:  # what one device of a slice has summed, for the same device of the others
            network = self.topology.chip.network_bandwidth
            assert network is not None
            received[hlo_cost.BETWEEN_SLICES] = (
                2 * self.summed * (slices - 1) / slices,
                network,
            )
        if n > 1:  # gradients: each device ends with its shard, then with all of them
            share = self.summed * (2 if m.data > slices else 1) * (n - 1) / n
            if m.fsdp > 1:  # those of a layer in its backward pass
                share += self.passes / 2 * self.gradients * (m.fsdp - 1) / m.fsdp
            received["reduce-scatter"] = (share, self._bandwidth(n))
        if m.tensor > 1:
            sums = {"full": 8, "attention": 6, "frozen": 6, "none": 6}[self.run.train.remat]
            one = 2 * self.frames * self.D * self.itemsize * (m.tensor - 1) / m.tensor
            received["all-reduce"] = (sums * self.layers * one, self._bandwidth(m.tensor))
        return received

    def hbm_traffic(self) -> float:
        """Returns the bytes between one device and its HBM per step."""
        moves, tensor, m = _TRAFFIC[self.topology.chip.kind], self.mesh.tensor, self.mesh
        again = self.passes / 2 * _READ_AGAIN[self.run.train.remat]
        codes = self.codes * moves.codes * (self.passes + again)
        rest = self.gathered - self.codes
        # gathered weights are written and read, and so are shards on the way
        weights = rest * (
            self.passes * (2 + 1 / m.fsdp) if m.fsdp > 1 else self.passes * moves.weights
        )
        kept = moves.kept * self.frames * self._kept() * self.layers
        whole, split = moves.per_frame
        values = whole * self.D + split * (self.D + self.F) / tensor
        per_frame = self.frames * self.layers * self.itemsize * values
        return codes + weights + rest * again + kept + per_frame + 7 * self.adapters

    def _kept(self) -> float:
        """Bytes of activations kept per frame and layer; heads and MLP halves are split over `tensor`.

        Without remat the norms' values, in float32. Splash also saves the result of self-attention.
        """
        D, F, tensor = self.D, self.F, self.mesh.tensor
        whole, heads = 3 * D, (5 if self.gpus else 8) * D
        values = {
            "none": 26 * D + (6 * D + 5 * F) / tensor,
            "frozen": whole + (heads + 2 * F) / tensor,
            "attention": whole + heads / tensor,
            "full": D,
        }[self.run.train.remat]
        return float(self.itemsize * values)

    def _share_read(self, path: str) -> float:
        """Returns in what share of passes a frozen kernel is read; on GPUs XLA copies also what none uses."""
        if path.startswith("depformer/") and not self.gpus:
            return self.run.loss.trained_codebooks / self.run.model.codebooks_out
        once = path.startswith(("image/", "backbone/text_head/")) and not self.gpus
        return 0.5 if once else 1.0

    def _uses(self, path: str) -> int:
        """Returns how often an adapter's gradient is reduced: what layers share, on GPUs in each of them."""
        shared = _SHARED.match(path) and self.gpus
        return len(self.run.model.cross_attention_layers) if shared else 1

    def _share_of_float32(self, path: str) -> float:
        """Returns the size of the numbers in which devices sum an adapter's gradient, in those of float32."""
        return 1.0 if self.gpus or _SHARED.match(path) else self.itemsize / 4

    def _bandwidth(self, devices: int) -> float:
        """Bytes/s into a device of a group, if the group lies as squarely as it can."""
        shape = self.topology.shape
        box, left = [1] * len(shape), devices
        for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
            box[axis] = math.gcd(shape[axis], left)
            left //= box[axis]
        return self.topology.group_bandwidth(list(itertools.product(*map(range, box))))


def _bytes(
    params: tree.Tree, mesh: schema.MeshConfig, *, times: Callable[[str], float] = lambda path: 1
) -> float:
    """Returns the bytes of parameters on one device of a mesh; each leaf so many times, by its path."""
    placed = sharding.shardings(params, sharding.abstract_mesh(mesh))
    flat = tree.flatten(sharding.with_shardings(params, placed))
    return sum(times(path) * sharding.bytes_per_device({path: v}) for path, v in flat.items())
