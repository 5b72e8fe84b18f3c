"""Compiles the real training step for a TPU slice on a machine without TPUs, and caches the result."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from mvjax import files, tree, types
from mvjax.config import schema
from mvjax.data import batch_spec
from mvjax.train import chips, load, sharding
from mvjax.train import step as step_lib

# libtpu asks the cloud's metadata server what machine this is, and lets one process at a time load it.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # any that it knows; the topology is named below
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
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


def slice_mesh(run: schema.Config, topology: chips.Topology) -> Mesh:
    """Returns the mesh of a run over the devices of TPU slices that need not exist.

    Raises:
      ValueError: if libtpu is missing or refuses the slice, or the mesh does not fit it.
    """
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    shape = "x".join(str(size) for size in topology.shape)
    # of v4, unlike the others, libtpu shows two devices a chip unless it is asked for one
    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    if math.prod(topology.shape) == 1:  # it takes a host to have four chips unless it is told
        options["chips_per_host_bounds"] = [1, 1, 1]
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.chip.name}:{shape}", **options
        )
    except Exception as error:  # jaxlib raises several kinds
        raise ValueError(
            f"--topology {topology.name}: cannot compile for it: {str(error).splitlines()[0]}\n"
            'The compiler is installed with `pip install "mvjax[tpu]"`; --count does without it.'
        ) from error
    return sharding.make_mesh(run.mesh, described.devices)


def step_arguments(run: schema.Config, mesh: Mesh) -> StepArguments:
    """Returns the ShapeDtypeStructs of state, frozen parameters and batch, with shardings on the mesh."""
    params = load.abstract_params(run)
    return StepArguments(
        step_lib.abstract_state(run, mesh, params.adapters),
        sharding.with_shardings(params.frozen, sharding.shardings(params.frozen, mesh)),
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
    """Compiles the step of a run for a TPU slice, or reads it from the cache folder.

    The cache key is the lowered program itself with the versions of the compiler and the topology: whatever
    changes the program, in config or code, compiles again, and nothing else does.

    Raises:
      ValueError: if the compiler refuses the step for another reason than memory.
    """
    lowered = lower(run, mesh, arguments, "tpu")
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "libtpu")
    ]
    fields = [field.name for field in dataclasses.fields(CompiledStep)]
    parts = (*fields, topology.name, *versions, sharding.describe(mesh), lowered.as_text())
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


def _compile(lowered: Any, topology: chips.Topology) -> CompiledStep:
    began = time.monotonic()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = out_of_hbm(error)
        if sizes is None:
            raise ValueError(
                f"{topology.name}: the compiler refused the step: {str(error)[:2000]}"
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
