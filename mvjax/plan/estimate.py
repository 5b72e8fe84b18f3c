"""The same plan by counting, without a compiler: for GPUs, and to choose what is worth compiling."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import jax
import numpy as np

from mvjax import tree
from mvjax.config import schema
from mvjax.plan import cost
from mvjax.train import chips, load, sharding
from mvjax.train import flops as flops_lib

BYTES = {"float32": 4, "bfloat16": 2}
REMATS: tuple[schema.Remat, ...] = ("none", "frozen", "attention", "full")


def estimated_plan(
    run: schema.Config, topology: chips.Topology, *, shapes: load.Params | None = None
) -> cost.Plan:
    """Counts memory, operations and traffic of a run whose mesh has no -1 left.

    Memory: what lives from step to step, exactly; of activations what `train.remat` keeps, and the working
    set of one layer. Traffic with main memory: weights once a pass, and what is kept written and read. Of
    the collectives: weights gathered over `fsdp` once a pass, the residual stream summed over `tensor`,
    gradients summed over all.

    Args:
      run: the config.
      topology: the chips.
      shapes: of the run's parameters, if they are known already.
    """
    sizes = _Sizes(run, topology, shapes or load.held(run))
    flops = flops_lib.step_flops(run)
    memory = sizes.memory()
    needed = sum(memory.values())
    room = topology.usable_hbm
    executed = flops.model_flops + flops.remat
    received = sizes.collectives()
    traffic = sizes.traffic()
    chip = topology.chip
    compute_seconds = executed / topology.devices / chip.peak_flops
    ici = sum((bytes_ / rate for bytes_, rate in received.values()), 0.0)
    hbm = traffic / chip.hbm_bandwidth
    return cost.Plan(
        run=run,
        topology=topology,
        flops=flops,
        memory=memory,
        needed=needed,
        room=room,
        fits=needed <= room,
        times=cost.Times(compute_seconds, hbm, ici, compute_seconds + hbm + ici),
        executed=executed,
        recomputed=flops.remat,
        traffic=traffic,
        collectives={kind: bytes_ for kind, (bytes_, _) in received.items()},
        compiled=False,
    )


def choices(
    run: schema.Config, topology: chips.Topology, *, shapes: load.Params
) -> Iterator[schema.Config]:
    """Yields the run with every mesh, remat policy and accumulation that its sizes and rows divide by."""
    devices, data, model = topology.devices, run.data, run.model
    counts = [n for n in (data.speech_rows, data.speechless_rows) if n]
    heads = (model.backbone.heads, model.depformer.heads, model.siglip.heads)
    for shards in _divisors(devices):
        tensor = devices // shards
        if any(n % shards for n in counts) or any(n % tensor for n in heads):
            continue
        for fsdp in _divisors(shards):
            mesh = schema.MeshConfig(data=shards // fsdp, fsdp=fsdp, tensor=tensor)
            if not _divides(shapes, mesh):
                continue
            for remat, times in itertools.product(REMATS, (1, 2, 4, 8)):
                if not any(n % (shards * times) for n in counts):
                    train = dataclasses.replace(run.train, remat=remat, grad_accum_steps=times)
                    yield dataclasses.replace(run, mesh=mesh, train=train)


def ranked(run: schema.Config, topology: chips.Topology) -> list[cost.Plan]:
    """Returns the choices, those that fit by counting first, the fastest first.

    Among equals, what needs least memory comes first.
    """
    shapes = load.held(run)
    candidates = choices(run, topology, shapes=shapes)
    plans = [estimated_plan(candidate, topology, shapes=shapes) for candidate in candidates]
    if not plans:
        raise ValueError(
            f"--topology {topology.name}: no mesh of {topology.devices} devices divides "
            f"data.speech_rows={run.data.speech_rows} and data.speechless_rows="
            f"{run.data.speechless_rows}, and the model's heads; change the rows"
        )
    return sorted(plans, key=_rank)


def settings(run: schema.Config) -> str:
    """Returns the `--set` words that give a run's mesh, policy and accumulation."""
    m, train = run.mesh, run.train
    values = {
        "mesh.data": m.data,
        "mesh.fsdp": m.fsdp,
        "mesh.tensor": m.tensor,
        "train.remat": train.remat,
        "train.grad_accum_steps": train.grad_accum_steps,
    }
    return " ".join(f"--set {name}={value}" for name, value in values.items())


def _rank(one: cost.Plan) -> tuple[bool, float, float]:
    assert one.times is not None
    return (not one.fits, round(one.times.step + 0.25 * one.times.serial, 3), one.needed)


def _divides(shapes: load.Params, mesh: schema.MeshConfig) -> bool:
    try:
        sharding.shardings(tree.merge(*shapes), sharding.abstract_mesh(mesh))
    except ValueError:
        return False
    return True


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


class _Sizes:
    """Bytes and positions of a run on one device."""

    def __init__(self, run: schema.Config, topology: chips.Topology, shapes: load.Params) -> None:
        self.run, self.topology = run, topology
        m, data, c = run.model, run.data, run.model.backbone
        self.mesh = run.mesh
        self.shards = run.mesh.data * run.mesh.fsdp
        self.width = BYTES[m.dtype]
        self.positions = flops_lib.frames_per_step(data) / self.shards  # on one device, a step
        self.images = (data.speech_rows + data.speechless_rows) / self.shards
        self.patches = m.siglip.tokens
        self.layers, self.D, self.F = c.layers, c.width, c.hidden
        mesh = sharding.abstract_mesh(run.mesh)
        self.adapters = _bytes(shapes.adapters, mesh)
        self.frozen = _bytes(shapes.frozen, mesh)
        # gathered for a pass: everything but the embeddings, of which rows are looked up
        flat = {p: v for p, v in tree.flatten(shapes.frozen).items() if "_emb/" not in p}
        whole = sharding.abstract_mesh(schema.MeshConfig(1, 1, run.mesh.tensor))
        self.gathered = _bytes(tree.unflatten(flat), whole)

    def memory(self) -> dict[str, float]:
        """Bytes by part."""
        data, c, m = self.run.data, self.run.model, self.mesh
        state = 2 + (self.run.optim.ema_decay is not None)
        rows = (data.speech_rows + data.speechless_rows) / self.shards
        image = 3 * c.siglip.image_size**2
        if data.features:
            image = self.patches * c.siglip.width * BYTES["bfloat16"]
        batch = rows * image + self.positions * (4 * c.codebooks + 1)
        live = self.positions / self.run.train.grad_accum_steps
        kept = live * self._kept() * self.layers
        layer = self.gathered / self.layers if m.fsdp > 1 else 0.0
        working = 2 * layer + live * self.width * (4 * self.D + 4 * self.F / m.tensor)
        logits = self.run.train.loss_chunk * rows * c.text_vocab * (4 + self.width) / m.tensor
        keys = 2 * self.images * self.patches * self.D * self.width / m.tensor
        return {
            "frozen weights": self.frozen,
            "adapters": self.adapters,
            "optimizer": state * self.adapters,
            "batch": batch,
            "gradients": self.adapters,
            "kept activations": kept,
            "working set": working + logits + 2 * keys,
        }

    def collectives(self) -> dict[str, tuple[float, float]]:
        """{kind: (bytes that one device receives in a step, bytes a second)}."""
        m, found = self.mesh, {}
        passes = 2 * 2 * self.run.train.grad_accum_steps  # forward and backward, both parts
        if m.fsdp > 1:
            gathered = passes * self.gathered * (m.fsdp - 1) / m.fsdp
            found["all-gather"] = (gathered, self._rate(m.fsdp))
        n = self.shards
        if n > 1:
            # in float32, each device ends with its share, then with all
            share = self.adapters * (2 if m.data > 1 else 1) * (n - 1) / n
            found["reduce-scatter"] = (share, self._rate(n))
        if m.tensor > 1:
            sums = {"full": 8, "attention": 6, "frozen": 6, "none": 6}[self.run.train.remat]
            one = 2 * self.positions * self.D * self.width * (m.tensor - 1) / m.tensor
            found["all-reduce"] = (sums * self.layers * one, self._rate(m.tensor))
        return found

    def traffic(self) -> float:
        """Bytes between one device and its memory in a step."""
        passes = 2 * 2 * self.run.train.grad_accum_steps
        weights = self.gathered * passes * (3 if self.mesh.fsdp > 1 else 1)
        kept = 2 * self.positions * self._kept() * self.layers
        stream = (
            2
            * 12
            * self.positions
            * self.layers
            * self.width
            * (self.D + self.F / self.mesh.tensor / 2)
        )
        return weights + kept + stream + 7 * self.adapters

    def _kept(self) -> float:
        """Bytes of a position and a layer; heads and the MLP's hidden are spread over `tensor`."""
        spread = self.mesh.tensor
        D, F = self.D, self.F
        values = {
            "none": 3 * D + (14 * D + 5 * F) / spread,
            "frozen": 4 * D + (8 * D + 2 * F) / spread,
            "attention": 4 * D + 8 * D / spread,
            "full": D,
        }[self.run.train.remat]
        return float(self.width * values)

    def _rate(self, devices: int) -> float:
        """Bytes a second into a device of a group, if it is laid as squarely as it can be."""
        shape, place = self.topology.shape, []
        left = devices
        for size in sorted(shape, reverse=True):
            extent = math.gcd(size, left)
            place.append(extent)
            left //= extent
        axes = sorted(range(len(shape)), key=lambda axis: -shape[axis])
        box = [1] * len(shape)
        for axis, extent in zip(axes, place):
            box[axis] = extent
        return self.topology.group_bandwidth(list(itertools.product(*(range(n) for n in box))))


def _bytes(params: tree.Tree, mesh: jax.sharding.AbstractMesh) -> float:
    """Returns what a tree of shape structs takes on one device."""
    flat, placed = tree.flatten(params), tree.flatten(sharding.shardings(params, mesh))
    sizes = {path: np.prod(placed[path].shard_shape(leaf.shape)) for path, leaf in flat.items()}
    return float(sum(sizes[path] * leaf.dtype.itemsize for path, leaf in flat.items()))
