"""A frame of the JAX runtime compiled for a device that need not be here, and how many conversations fit."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvjax import tree, types
from mvjax.config import schema
from mvjax.plan import (
    compiled_step,
    from_compiler,
    gpu_targets,
    hlo,
    hlo_cost,
    step_plan,
    tpu_targets,
)
from mvjax.runtimes import interface
from mvjax.runtimes.jax import frame_cost
from mvjax.runtimes.jax import model as runtime
from mvjax.train import chips, load


@dataclasses.dataclass(frozen=True)
class Needed:
    """Bytes that a frame must read, for so many conversations whose caches are full and that see images."""

    weights: float  # each matrix once
    again: float  # what layers share, in every layer after the first
    caches: float
    images: float  # in every layer that sees

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.again + self.caches + self.images


@dataclasses.dataclass(frozen=True)
class Frame:
    """The compiled frame of so many conversations on one device; no costs if it does not fit."""

    rows: int
    memory: dict[str, float]  # bytes, by part
    peak_hbm: float
    fits: bool
    needed: Needed
    hbm_bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0  # the longest of HBM traffic and matmuls, at published rates
    kernels: dict[str, step_plan.Kernels] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FramePlan:
    """What a device holds: the frame of one conversation, and of as many as it holds by both limits."""

    run: schema.Config
    topology: chips.Topology
    stored: interface.KvCache | None  # how KV caches are; None: in the model's dtype
    one: Frame
    many: Frame | None  # None if not even one fits
    by_memory: int
    by_deadline: int

    @property
    def holds(self) -> int:
        """Conversations at once on one device."""
        return min(self.by_memory, self.by_deadline)

    @property
    def kv_cache(self) -> str:
        """The dtype of KV caches."""
        return self.stored or self.run.model.dtype


def plan(
    run: schema.Config,
    topology: chips.Topology,
    *,
    cache: Path | None,
    stored: interface.KvCache | None = None,
) -> FramePlan:
    """Compiles the frame for one conversation, and for as many as the device holds.

    `cache` is the folder of compiled programs, `stored` how KV caches are.

    Raises:
      ValueError: if the topology has several devices, or as `compiled_step.compile_step`.
    """
    if topology.devices != 1:
        raise ValueError(
            f"--topology {topology.name}: a conversation runs on one device, and so does this plan: --serve"
            f" --topology {topology.chip.name}:1; it says how many devices more conversations take"
        )
    compiled = functools.partial(frame, run, topology, cache=cache, stored=stored)
    planned = functools.partial(FramePlan, run, topology, stored)
    one = compiled(1)
    if not one.fits:
        return planned(one, None, 0, 0)
    moved = one.needed.caches + one.needed.images  # by each conversation more
    stays = one.memory["KV caches"] + one.memory["images"]
    rows = 0
    while True:  # what is compiled corrects what was guessed, downward: each time fewer fit
        by_memory = 1 + int((topology.usable_hbm - one.peak_hbm) / stays)
        by_deadline = _within_deadline(topology, one, moved)
        most = min(by_memory, by_deadline)
        rows = min(most, rows - 1) if rows else most
        limits = (by_memory, rows) if by_deadline <= by_memory else (rows, by_deadline)
        if rows <= 1:
            return planned(one, one, *limits)
        many = compiled(rows)
        stays = max(stays, (many.peak_hbm - one.peak_hbm) / (rows - 1))
        if many.fits and many.seconds <= types.FRAME_SECONDS:
            return planned(one, many, *limits)
        if many.fits:
            moved = max(moved, (many.hbm_bytes - one.hbm_bytes) / (rows - 1))


def frame(
    run: schema.Config,
    topology: chips.Topology,
    rows: int,
    *,
    cache: Path | None,
    stored: interface.KvCache | None = None,
) -> Frame:
    """Compiles the frame of so many conversations."""
    config = run.model
    params = tree.merge(*load.abstract_params(run))
    arguments = frame_cost.arguments(config, rows=rows, params=params, stored=stored)
    compiled = _compiled(config, topology, arguments, cache)
    memory = {
        "weights": _stored(params, config),
        "KV caches": _size(arguments.caches),
        "images": _size(arguments.images),
        **compiled.memory,
    }
    needed = _needed(config, arguments)
    if not compiled.fits:
        return Frame(rows, memory, compiled.peak_hbm, False, needed)
    peak, chip = sum(memory.values()), topology.chip
    cost = hlo_cost.program_cost(hlo.parse(compiled.hlo), devices=1)
    return Frame(
        rows, memory, peak, peak <= topology.usable_hbm, needed, cost.hbm_bytes, cost.flops,
        max(cost.hbm_bytes / chip.hbm_bandwidth, cost.flops / chip.peak_flops),
        from_compiler.kernels(cost),
    )  # fmt: skip


def _compiled(
    config: schema.ModelConfig,
    topology: chips.Topology,
    arguments: frame_cost.Arguments,
    cache: Path | None,
) -> compiled_step.CompiledStep:
    targets = tpu_targets if topology.chip.kind == "tpu" else gpu_targets
    placed = jax.sharding.SingleDeviceSharding(targets.devices(topology)[0])
    *arrays, _ = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), arguments
    )
    step: Any = runtime.frame_step
    traced = step.trace(config, *arrays, spec=arguments.spec, probes=False)
    lowered = traced.lower(lowering_platforms=(compiled_step.PLATFORM[topology.chip.kind],))
    return compiled_step.compile_lowered(lowered, topology, config, "frame", cache=cache)


def _needed(config: schema.ModelConfig, arguments: frame_cost.Arguments) -> Needed:
    weights, layers = arguments.weights, len(config.cross_attention_layers)
    depth = weights.depth._replace(text_emb=None, audio_emb=())
    once = weights._replace(text_emb=None, audio_emb=(), depth=depth)  # without tables
    return Needed(
        weights=_size(once),
        again=(layers - 1) * _size(weights.shared),
        caches=_size(arguments.caches),
        images=_size(arguments.images) * (1 if len(arguments.images) > 1 else layers),
    )


def _within_deadline(topology: chips.Topology, one: Frame, each: float) -> int:
    """Returns how many conversations' frames take a frame's time, if each after the first moves so much."""
    spare = types.FRAME_SECONDS * topology.chip.hbm_bandwidth - one.hbm_bytes
    return 0 if spare < 0 else 1 + int(spare / each)


def _stored(params: tree.Tree, config: schema.ModelConfig) -> float:
    """Returns the bytes of parameters as the runtime holds them: matrices in the model's dtype, or codes."""
    total = 0.0
    for path, leaf in tree.flatten(params).items():
        rounded = path.endswith(("kernel", "embedding")) and leaf.dtype != np.int8
        itemsize = np.dtype(config.dtype if rounded else leaf.dtype).itemsize
        total += math.prod(leaf.shape) * itemsize
    return total


def _size(leaves: Any) -> float:
    return float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(leaves)))
