"""Compiles the real training step for TPUs or GPUs that need not be here, and caches the result."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from mvjax import files, tree, types
from mvjax.config import schema
from mvjax.data import batch_spec
from mvjax.nn import flash
from mvjax.plan import gpu_targets, tpu_targets
from mvjax.train import chips, load, sharding
from mvjax.train import step as step_lib

# jax's name of the platform to lower for, and the packages whose versions the program depends on.
PLATFORM = {"tpu": "tpu", "gpu": "cuda"}
_PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-pjrt", "nvidia-cudnn-cu13")}
_ADDRESS = re.compile(r'(@CustomSPMDPartitioning\([^\n]*?backend_config = )"\d+"')
# Two passes of the compiler report that a program needs more HBM than there is, each in its own words.
_OUT_OF_HBM = tuple(
    re.compile(form.replace("SIZE", r"([\d.]+)([KMG])"))
    for form in ("Used SIZE of SIZE hbm", r"\(SIZE\) exceeds available HBM \(SIZE\)")
)


class StepArguments(NamedTuple):
    """ShapeDtypeStructs with shardings of what the step is called with."""

    state: step_lib.TrainState
    frozen: tree.Tree
    batch: types.Batch


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler reports of a step, for one device."""

    fits: bool  # whether the program fits into HBM; if not, there is none
    hlo: str  # its text; empty if there is no program, or if jaxlib cannot read libtpu's
    memory: dict[str, float]  # bytes of temporaries and code
    peak_hbm: float  # bytes in all; if it does not fit, the compiler's own figure
    hbm_limit: float | None  # bytes that the compiler grants a program, if it said so
    seconds: float  # that compiling took


def topology_mesh(run: schema.Config, topology: chips.Topology) -> Mesh:
    """Returns the mesh of a run over devices that need not exist.

    Raises:
      ValueError: if their compiler is missing or refuses them, or the mesh does not fit them.
    """
    targets = tpu_targets if topology.chip.kind == "tpu" else gpu_targets
    return sharding.make_mesh(run.mesh, targets.devices(topology))


def step_arguments(run: schema.Config, mesh: Mesh) -> StepArguments:
    """Returns the ShapeDtypeStructs of state, frozen parameters and batch, with shardings on the mesh."""
    params = load.abstract_params(run)
    return StepArguments(
        step_lib.abstract_state(run, mesh, params.adapters),
        sharding.with_shardings(params.frozen, sharding.formats(params.frozen, mesh)),
        batch_spec.batch_spec(run, sharding=sharding.rows(mesh)),
    )


def lower(run: schema.Config, mesh: Mesh, arguments: StepArguments, *platforms: str) -> Any:
    """Returns the lowered step, for the platforms (default: that of this process)."""
    step: Any = step_lib.make(run, mesh, adapters=arguments.state.adapters, frozen=arguments.frozen)
    return step.trace(*arguments).lower(lowering_platforms=platforms or None)


def compile_step(
    run: schema.Config,
    topology: chips.Topology,
    mesh: Mesh,
    arguments: StepArguments,
    *,
    cache: Path | None,
) -> CompiledStep:
    """Compiles the step of a run for a topology, or reads it from the cache folder.

    The cache key is the lowered program itself with the versions of the compiler and the topology: whatever
    changes the program, in config or code, compiles again, and nothing else does.

    Raises:
      ValueError: if the compiler refuses the step for another reason than memory.
    """
    lowered = lower(run, mesh, arguments, PLATFORM[topology.chip.kind])
    return compile_lowered(lowered, topology, run.model, sharding.describe(mesh), cache=cache)


def compile_lowered(
    lowered: Any,
    topology: chips.Topology,
    model: schema.ModelConfig,
    *more: str,
    cache: Path | None,
) -> CompiledStep:
    """Compiles a program of a model, lowered for a topology, as `compile_step`; `more` goes into the key."""
    packages = ("jax", "jaxlib", *_PACKAGES[topology.chip.kind])
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    fields = [field.name for field in dataclasses.fields(CompiledStep)]
    program = _key_text(lowered.as_text(), model)
    if topology.chip.kind == "gpu":
        versions += [gpu_targets.target_config(topology.chip), str(gpu_targets.COMPILER_OPTIONS)]
    parts = (*fields, topology.name, *versions, *more, program)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    file = None if cache is None else cache / f"{key}.json.gz"
    if file is not None and file.is_file():
        return CompiledStep(**json.loads(gzip.decompress(file.read_bytes())))
    compiled = _compile(lowered, topology)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = gzip.compress(json.dumps(dataclasses.asdict(compiled)).encode(), 6)
        files.write_atomic(file, content, shared=True)
    return compiled


def _key_text(program: str, model: schema.ModelConfig) -> str:
    """Returns a lowered program as the same text in every process.

    How cuDNN attends (the mask, the window) is not in it: only the address of a function of this process,
    in whose place what decides it is put.
    """
    text = _ADDRESS.sub(r"\1", program)
    return text if text == program else f"{text}\n{model}\n{inspect.getsource(flash)}"


def cache_folder() -> Path:
    """Returns where compiled steps are cached: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mvjax" / "plan"


def peak_memory(program: Any) -> float:
    """Returns the bytes that a compiled program needs on one device, its arguments included."""
    m = program.memory_analysis()
    buffers = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return float(buffers + m.temp_size_in_bytes + m.generated_code_size_in_bytes)


def out_of_hbm(error: Exception) -> tuple[float, float] | None:
    """Returns the bytes that a program needs and has, if a TPU's compiler refused it because of them."""
    sizes = next(filter(None, (form.search(str(error)) for form in _OUT_OF_HBM)), None)
    if sizes is None:
        return None
    needed, limit = (
        float(sizes[i]) * 2 ** {"K": 10, "M": 20, "G": 30}[sizes[i + 1]] for i in (1, 3)
    )
    return needed, limit


def _program(lowered: Any, topology: chips.Topology) -> Any:
    if topology.chip.kind != "gpu":
        return lowered.compile(compiler_options=None)
    try:
        return lowered.compile(compiler_options=gpu_targets.COMPILER_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if gpu_targets.NO_TILES not in str(error):
            raise
    return lowered.compile(compiler_options=gpu_targets.CUBLAS_OPTIONS)


def _compile(lowered: Any, topology: chips.Topology) -> CompiledStep:
    began = time.monotonic()
    try:
        program = _program(lowered, topology)
    except jax.errors.JaxRuntimeError as error:
        sizes = out_of_hbm(error)
        if sizes is None:
            raise ValueError(
                f"{topology.name}: the compiler refused the program: {str(error)[:2000]}"
            ) from error
        return CompiledStep(False, "", {}, *sizes, time.monotonic() - began)
    stats = program.memory_analysis()
    memory = {
        "temporaries": float(stats.temp_size_in_bytes),
        "code": float(stats.generated_code_size_in_bytes),
    }
    try:
        hlo = program.as_text()
    except jax.errors.JaxRuntimeError:
        # libtpu may be newer than jaxlib's reader, as 0.0.52 is than 0.10.2's: async-update of v5p, v6e
        hlo = ""
    return CompiledStep(True, hlo, memory, peak_memory(program), None, time.monotonic() - began)
