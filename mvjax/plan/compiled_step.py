"""Compiles the real training step for a TPU slice on a machine that has none, and keeps what came out."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from mvjax import files, types
from mvjax.config import schema
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
_MEMORY = ("argument", "output", "alias", "temp", "generated_code")
# Two passes of the compiler say it, each in its words: what is needed, and what there is.
_FULL = tuple(
    re.compile(form.replace("SIZE", r"([\d.]+)([KMG])"))
    for form in ("Used SIZE of SIZE hbm", r"\(SIZE\) exceeds available HBM \(SIZE\)")
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a step, for one device.

    Attributes:
      fits: whether there is a program.
      text: the HLO that would run; empty if there is none, or if jaxlib cannot read libtpu's.
      memory: bytes of arguments, outputs, aliases, temporaries and code.
      needed: bytes in all; the compiler's own figure if they do not fit.
      room: bytes that the compiler gives a program, if it said so.
      seconds: it took.
    """

    fits: bool
    text: str
    memory: dict[str, float]
    needed: float
    room: float | None
    seconds: float


class Arguments(tuple):
    """(state, frozen, batch) as shape structs with shardings: what the step is called with."""


def compile_step(run: schema.Config, topology: chips.Topology, *, cache: Path | None) -> Compiled:
    """Compiles the step of a run for a topology, or finds it in the cache.

    The key is the lowered program itself, with the versions of compiler and topology, so that any change
    of the config or of the code that changes the program, and no other, compiles again.

    Raises:
      ValueError: if libtpu is missing, the mesh does not fit the topology, or the compiler refuses it for
        another reason than memory.
    """
    mesh = slice_mesh(run, topology)
    arguments = step_arguments(run, mesh)
    state, frozen, _ = arguments
    step: Any = step_lib.make(run, mesh, adapters=state.adapters, frozen=frozen)
    lowered = step.trace(*arguments).lower(lowering_platforms=("tpu",))
    parts = (topology.name, _versions(), sharding.describe(mesh), lowered.as_text())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    file = None if cache is None else cache / f"{key}.json.gz"
    if file is not None and file.is_file():
        return Compiled(**json.loads(gzip.decompress(file.read_bytes())))
    found = _compile(lowered, topology)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = gzip.compress(json.dumps(dataclasses.asdict(found)).encode(), 6)
        files.write_atomic(file, content, shared=True)
    return found


def cache_folder() -> Path:
    """Returns where compiled steps are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mvjax" / "plan"


def slice_mesh(run: schema.Config, topology: chips.Topology) -> Mesh:
    """Returns the mesh of a run over the devices of a slice that need not exist."""
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    shape = "x".join(str(size) for size in topology.shape)
    # of v4, unlike the others, libtpu shows two devices a chip unless it is asked for one
    how = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.chip.name}:{shape}", **how
        )
    except Exception as error:  # jaxlib raises several kinds
        raise ValueError(
            f"--topology {topology.name}: cannot compile for it: {str(error).splitlines()[0]}\n"
            'Install the compiler with `pip install "mvjax[tpu]"`, and check the shape: v5e and v6e '
            "slices are 2x2, 2x4, 4x4, ... 16x16; v4, v5p and tpu7x 2x2x1, 2x2x2, 2x2x4, ..."
        ) from error
    return sharding.make_mesh(run.mesh, found.devices)


def step_arguments(run: schema.Config, mesh: Mesh) -> Arguments:
    """Returns shape structs of everything that a step is given, each with its sharding."""
    shapes = load.held(run)
    placed = sharding.shardings(shapes.frozen, mesh)
    frozen = jax.tree.map(_struct, shapes.frozen, placed)
    rows, data, model = sharding.rows(mesh), run.data, run.model
    image, kind = (model.siglip.image_size, model.siglip.image_size, 3), np.dtype(np.uint8)
    if data.features:  # as `data.features.form`, which a machine without data cannot import
        image, kind = (model.siglip.tokens, model.siglip.width), np.dtype(jnp.bfloat16)
    by_frame = data.small_talk_image == "absent"

    def part(count: int, length: int) -> types.Part:
        return types.Part(
            codes=_array((count, model.codebooks, length), np.int32, rows),
            loss_mask=_array((count, length), np.bool_, rows),
            images=_array((count, *image), kind, rows),
            has_image=_array((count, length) if by_frame else (count,), np.bool_, rows),
        )

    batch = types.Batch(
        part(data.speech_rows, data.speech_frames),
        part(data.speechless_rows, data.speechless_tokens),
    )
    return Arguments((step_lib.like(run, mesh, shapes.adapters), frozen, batch))


def program_memory(program: Any) -> tuple[dict[str, float], float]:
    """Returns what a compiled program needs on one device: bytes by part, and in all."""
    stats = program.memory_analysis()
    memory = {name: float(getattr(stats, f"{name}_size_in_bytes")) for name in _MEMORY}
    return memory, sum(memory.values()) - 2 * memory["alias"]


def bytes_per_device(leaves: Any) -> float:
    """Returns what a tree of shape structs with shardings takes on one device."""
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(leaves)
        )
    )


def _struct(leaf: jax.ShapeDtypeStruct, placed: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)


def _array(shape: tuple[int, ...], dtype: Any, placed: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)


def _compile(lowered: Any, topology: chips.Topology) -> Compiled:
    began = time.monotonic()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        full = next(filter(None, (form.search(str(error)) for form in _FULL)), None)
        if full is None:
            raise ValueError(
                f"{topology.name}: the compiler refused the step: {str(error)[:2000]}"
            ) from error
        needed, room = (_bytes(full[i], full[i + 1]) for i in (1, 3))
        return Compiled(False, "", {}, needed, room, time.monotonic() - began)
    memory, needed = program_memory(program)
    try:
        text = program.as_text()
    except jax.errors.JaxRuntimeError:
        # libtpu may be newer than jaxlib's reader, as 0.0.52 is than 0.10.2's: async-update of v5p, v6e
        text = ""
    return Compiled(True, text, memory, needed, None, time.monotonic() - began)


def _bytes(number: str, unit: str) -> float:
    return float(number) * 2 ** {"K": 10, "M": 20, "G": 30}[unit]


def _versions() -> str:
    names = ("jax", "jaxlib", "libtpu")
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
