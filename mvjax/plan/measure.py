"""Runs the real training step on devices that are here, with random weights, and measures it.

No weights are read and none exist in another form than training holds them: each parameter is made on the
devices, in its sharding and its dtype, by one elementwise program without temporaries.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Shaped, UInt32

from mvjax import tree, types
from mvjax.config import schema
from mvjax.plan import compiled_step
from mvjax.train import sharding
from mvjax.train import step as step_lib

SIZE = 0.03  # of random parameters: values lie between -SIZE and SIZE
SMALL = 2**22  # elements; leaves up to this are made by one program together
_CODES = 127
_FULL = re.compile(r"RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)
_FAILED = re.compile(r"allocat(?:e|ing)[^0-9]{0,24}([\d.]+) ?([KMGT]?)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a step took.

    Attributes:
      kind: of the devices, as jax names them.
      devices: how many.
      fits: whether the steps ran; False if they ran out of memory.
      seconds: of a step, the median of the timed ones; 0 if it does not fit.
      memory: bytes on the fullest device; if it does not fit, what it needs, or 0 if nobody said.
      memory_from: who said so: the device (the most it held, making the state included), the compiler
        (arguments, outputs and temporaries of the step), or the allocation that failed.
      compile_seconds: that compiling took; 0 if it does not fit.
      steps: that were timed.
      loss: of the last step.
      refused: if it does not fit, the first line of what the device said.
    """

    kind: str
    devices: int
    fits: bool
    seconds: float
    memory: float
    memory_from: Literal["device", "compiler", "allocation"]
    compile_seconds: float
    steps: int
    loss: float = math.nan
    refused: str = ""


def measure(
    run: schema.Config, devices: Sequence[Any], *, warm: int = 3, steps: int = 10
) -> Measured:
    """Compiles the step of a run and times it on a batch that is on the devices already.

    Steps follow each other as in training: the next one is sent before the values of the last are waited for.

    Args:
      run: the config; its mesh multiplies to the devices, but for a -1.
      devices: where to run.
      warm: steps before the timed ones, at least 1.
      steps: timed.

    Raises:
      ValueError: if mesh or rows do not divide.
    """
    assert warm > 0 and steps > 0
    kind, before = devices[0].device_kind, _held(devices)
    mesh = sharding.make_mesh(run.mesh, devices)
    arguments = compiled_step.step_arguments(run, mesh)
    needed, refused = 0.0, ""
    try:
        began = time.monotonic()
        program = _compile(run, mesh, arguments)
        compile_seconds = time.monotonic() - began
        _, needed = compiled_step.program_memory(program)
        times, loss = _times(run, mesh, arguments, program, warm=warm, steps=steps)
    except jax.errors.JaxRuntimeError as error:  # its traceback holds arrays: only its text is kept
        if not _FULL.search(str(error)):
            raise
        refused = str(error)
    if refused:
        failed = needed or _failed(refused)
        said = "compiler" if needed else "allocation"
        line = refused.strip().splitlines()[0]
        return Measured(kind, len(devices), False, 0.0, failed, said, 0.0, 0, refused=line)
    held, said = _held(devices), "device"
    if held is None or (before is not None and held <= before):
        held, said = needed, "compiler"  # the device does not tell, or held more before
    return Measured(
        kind, len(devices), True, statistics.median(times), held, said, compile_seconds, steps, loss
    )


def parameters(shapes: tree.Tree) -> dict[str, Any]:
    """Returns random parameters for shape structs with shardings: noise, but for norms, which are ones.

    A large leaf has a program of its own, so that the compiler cannot hold two of them in other forms.
    int8 codes are spread over all values; the scale beside them makes them as large as other kernels.
    """
    flat = tree.flatten(shapes)
    makers = {path: _maker(number, path, flat) for number, path in enumerate(flat)}
    small = [path for path, leaf in flat.items() if leaf.size <= SMALL]
    made: dict[str, Any] = {}
    for group in (small, *([path] for path in flat if path not in small)):
        placed = {path: flat[path].sharding for path in group}
        program = jax.jit(
            lambda seed, group=tuple(group): {path: makers[path](seed) for path in group},
            out_shardings=placed,
        )
        made |= program(np.uint32(1))
    return tree.unflatten({path: made[path] for path in flat})


def batch(run: schema.Config, shapes: types.Batch) -> types.Batch:
    """Returns a batch of valid random codes and images for shape structs with shardings.

    Every row sees an image, and every target counts; speechless rows have no audio.
    """
    rng = np.random.default_rng(0)
    return types.Batch(
        _part(run.model, shapes.speech, rng, spoken=True),
        _part(run.model, shapes.speechless, rng, spoken=False),
    )


def _compile(run: schema.Config, mesh: Mesh, arguments: compiled_step.Arguments) -> Any:
    state, frozen, _ = arguments
    step: Any = step_lib.make(run, mesh, adapters=state.adapters, frozen=frozen)
    return step.lower(*arguments).compile()


def _times(
    run: schema.Config,
    mesh: Mesh,
    arguments: compiled_step.Arguments,
    program: Any,
    *,
    warm: int,
    steps: int,
) -> tuple[list[float], float]:
    """Runs the program; returns seconds between the ends of the timed steps, and the last loss."""
    shapes, frozen_shapes, batch_shapes = arguments
    frozen = parameters(frozen_shapes)
    state = step_lib.new_state(run, mesh, parameters(shapes.adapters))
    rows = batch(run, batch_shapes)
    ends: list[float] = []
    waiting: Any = None
    for _ in range(warm + steps):
        state, metrics = program(state, frozen, rows)
        if waiting is not None:
            jax.block_until_ready(waiting)
            ends.append(time.perf_counter())
        waiting = metrics
    jax.block_until_ready(waiting)
    ends.append(time.perf_counter())
    times = [after - before for before, after in itertools.pairwise(ends)]
    return times[-steps:], float(waiting["loss"])


def _part(
    model: schema.ModelConfig, part: types.Part, rng: np.random.Generator, *, spoken: bool
) -> types.Part:
    rows, _, length = part.codes.shape
    codes = rng.integers(0, model.audio_vocab, part.codes.shape, np.int32)
    codes[:, 0] = rng.integers(0, model.text_vocab, (rows, length), np.int32)
    if not spoken:
        codes[:, 1:] = types.ZERO_TOKEN
    if part.images.dtype == np.uint8:
        images = rng.integers(0, 256, part.images.shape, np.uint8)
    else:  # features
        images = rng.standard_normal(part.images.shape, np.float32).astype(part.images.dtype)
    seen = np.ones(part.has_image.shape, bool)
    values = types.Part(codes, np.ones((rows, length), bool), images, seen)
    return jax.tree.map(lambda value, like: jax.device_put(value, like.sharding), values, part)


def _maker(number: int, path: str, leaves: Mapping[str, Any]) -> Callable[[Array], Array]:
    """Returns how to make one leaf from a seed."""
    leaf = leaves[path]
    if not path.endswith("/scale"):
        return lambda seed: _noise(seed + np.uint32(number), shape=leaf.shape, dtype=leaf.dtype)
    codes = path.removesuffix("scale") + "kernel" in leaves
    return lambda seed: jnp.full(leaf.shape, SIZE / _CODES if codes else 1.0, leaf.dtype)


def _noise(seed: UInt32[Array, ""], *, shape: tuple[int, ...], dtype: Any) -> Shaped[Array, "..."]:
    """Returns values spread evenly over their range, each a hash of its place in the leaf.

    jax.random would hold several times the leaf while it makes it, where its generator is a kernel.
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
    """Returns each number scrambled, with the constants of MurmurHash3."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _held(devices: Sequence[Any]) -> float | None:
    """Returns the most bytes that one of the devices ever held in this process; None where none tells."""
    known = [stats for device in devices if (stats := device.memory_stats())]
    peaks = [stats["peak_bytes_in_use"] for stats in known if "peak_bytes_in_use" in stats]
    return float(max(peaks)) if peaks else None


def _failed(message: str) -> float:
    """Returns the bytes of the allocation that a message says has failed; 0 if it does not say."""
    found = _FAILED.search(message)
    return float(found[1]) * _UNITS[found[2]] if found else 0.0
