"""Runs the real training step on devices that are here, with random weights, and measures time and memory.

No weights are read: each parameter is made on the devices, in its sharding and its dtype, by one elementwise
program without temporaries.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Shaped, UInt32

from mvjax import tree, types
from mvjax.config import schema
from mvjax.plan import compiled_step
from mvjax.train import memory, sharding
from mvjax.train import step as step_lib

SIZE = 0.03  # random parameters lie between -SIZE and SIZE
_CODES = 127
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)
_ALLOCATION = re.compile(r"allocat(?:e|ing)[^0-9]{0,24}([\d.]+) ?([KMGT]?)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A step as measured.

    Memory is the device's peak (making the state included), the compiler's (arguments, outputs and
    temporaries of the step), or the allocation that failed.
    """

    device_kind: str  # as jax names it
    devices: int
    fits: bool  # whether the steps ran; False if they ran out of memory
    step_seconds: float  # median of the timed steps; 0 if it does not fit
    peak_memory: (
        float  # bytes on the fullest device; if it does not fit, what it needs, or 0 if unknown
    )
    memory_source: Literal["device", "compiler", "allocation"]
    compile_seconds: float  # that compiling took; 0 if it does not fit
    steps: int  # that were timed
    loss: float = math.nan  # of the last step
    error: str = ""  # if it does not fit, the first line of the device's error


def measure(
    run: schema.Config, devices: Sequence[Any], *, warmup: int = 3, steps: int = 10
) -> Measured:
    """Compiles the step of a run and times it on a batch that is on the devices already.

    As in training, a step is dispatched before the metrics of the step before it are waited for. At least one
    step is warm-up; the run's mesh multiplies to the devices, but for a -1.

    Raises:
      ValueError: if mesh or rows do not divide.
    """
    assert warmup > 0 and steps > 0
    kind, peak_before = devices[0].device_kind, memory.device_peak_bytes(devices)
    mesh = sharding.make_mesh(run.mesh, devices)
    arguments = compiled_step.step_arguments(run, mesh)
    compiler_bytes = 0.0
    try:
        began = time.monotonic()
        program = compiled_step.lower(run, mesh, arguments).compile()
        compile_seconds = time.monotonic() - began
        compiler_bytes = compiled_step.peak_memory(program)
        times, loss = _times(run, mesh, arguments, program, warmup=warmup, steps=steps)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if not _OUT_OF_MEMORY.search(message):
            raise
        needed = compiler_bytes or _failed_allocation(message)
        source = "compiler" if compiler_bytes else "allocation"
        line = message.strip().splitlines()[0]
        return Measured(kind, len(devices), False, 0.0, needed, source, 0.0, 0, error=line)
    peak, source = memory.device_peak_bytes(devices), "device"
    if peak is None or (peak_before is not None and peak <= peak_before):
        peak, source = compiler_bytes, "compiler"  # no device figure, or an earlier, higher peak
    seconds = statistics.median(times)
    return Measured(kind, len(devices), True, seconds, peak, source, compile_seconds, steps, loss)


def random_parameters(shapes: tree.Tree) -> dict[str, Any]:
    """Returns random parameters for ShapeDtypeStructs with shardings: noise, but for norms, which are ones.

    Each leaf has a program of its own, so that the compiler cannot hold two of them in other dtypes.
    int8 codes are spread over all values; the scale beside them makes them as large as other kernels.
    """
    flat, made = tree.flatten(shapes), {}
    for number, (path, leaf) in enumerate(flat.items()):
        if path.endswith("/scale"):
            of_codes = path.removesuffix("scale") + "kernel" in flat
            values = np.full(leaf.shape, SIZE / _CODES if of_codes else 1.0, leaf.dtype)
            made[path] = jax.device_put(values, leaf.sharding)
        else:  # the seed is an argument: XLA would compute the noise of a constant while it compiles
            noise = functools.partial(_noise, shape=leaf.shape, dtype=leaf.dtype)
            made[path] = jax.jit(noise, out_shardings=leaf.sharding)(np.uint32(number + 1))
    return tree.unflatten(made)


def random_batch(model: schema.ModelConfig, spec: types.Batch) -> types.Batch:
    """Returns a batch of valid random codes and images for a `batch_spec` with shardings.

    Every row sees an image, and every target counts; speechless rows have no audio.
    """
    rng = np.random.default_rng(0)
    return types.Batch(
        _random_part(model, spec.speech, rng, spoken=True),
        _random_part(model, spec.speechless, rng, spoken=False),
    )


def _times(
    run: schema.Config,
    mesh: Mesh,
    arguments: compiled_step.StepArguments,
    program: Any,
    *,
    warmup: int,
    steps: int,
) -> tuple[list[float], float]:
    """Runs the program; returns seconds between the ends of the timed steps, and the last loss."""
    frozen = random_parameters(arguments.frozen)
    adapters = random_parameters(arguments.state.adapters)
    state = step_lib.new_state(run, mesh, adapters)
    batch = random_batch(run.model, arguments.batch)
    ends: list[float] = []
    state, pending = program(state, frozen, batch)
    for _ in range(1, warmup + steps):
        state, metrics = program(state, frozen, batch)
        jax.block_until_ready(pending)
        ends.append(time.perf_counter())
        pending = metrics
    jax.block_until_ready(pending)
    ends.append(time.perf_counter())
    times = [after - before for before, after in itertools.pairwise(ends)]
    return times[-steps:], float(pending["loss"])


def _random_part(
    model: schema.ModelConfig, spec: types.Part, rng: np.random.Generator, *, spoken: bool
) -> types.Part:
    codes = rng.integers(0, model.audio_vocab, spec.codes.shape, np.int32)
    codes[:, 0] = rng.integers(0, model.text_vocab, spec.loss_mask.shape, np.int32)
    if not spoken:
        codes[:, 1:] = types.ZERO_TOKEN
    if spec.images.dtype == np.uint8:
        images = rng.integers(0, 256, spec.images.shape, np.uint8)
    else:  # features
        images = rng.standard_normal(spec.images.shape, np.float32).astype(spec.images.dtype)
    mask, seen = np.ones(spec.loss_mask.shape, bool), np.ones(spec.has_image.shape, bool)
    values = types.Part(codes, mask, images, seen)
    return jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), values, spec)


def _noise(seed: UInt32[Array, ""], *, shape: tuple[int, ...], dtype: Any) -> Shaped[Array, "..."]:
    """Returns uniform noise: each value is a hash of its place in the leaf.

    jax.random would hold several times the leaf in memory where its generator is a kernel.
    """
    index = jax.lax.broadcast(seed * np.uint32(0x9E3779B9), shape)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    bits = _mixed(_mixed(index))
    unit = (bits >> 8).astype(jnp.float32) * 2.0**-23 - 1
    if dtype == jnp.int8:
        return jnp.round(unit * _CODES).astype(dtype)
    return (unit * SIZE).astype(dtype)


def _mixed(bits: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Returns hashes of numbers, with the constants of MurmurHash3."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _failed_allocation(message: str) -> float:
    """Returns the bytes of the allocation that failed, by the error message; 0 if it names none."""
    match = _ALLOCATION.search(message)
    return float(match[1]) * _UNITS[match[2]] if match else 0.0
