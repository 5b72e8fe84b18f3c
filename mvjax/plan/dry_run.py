"""`mvjax train --dry-run`: checks files, run folder, records, mesh and memory; no step, nothing written.

With a topology it is not this machine that trains: mesh and memory are those of `mvjax plan`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mvjax import messages, run_folder
from mvjax.config import schema
from mvjax.data import mixing, mixture
from mvjax.plan import compiled_step, search
from mvjax.train import (
    begin,
    checkpoint,
    chips,
    distributed,
    learnable,
    load,
    resume,
    sharding,
)


def check(
    run: schema.Config,
    folder: Path,
    *,
    extend: bool = False,
    warm_start: run_folder.RunStep | None = None,
    topologies: Sequence[chips.Topology] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Says what a run would begin with; every process of a run calls it, and the first one speaks.

    With topologies, one process says what does not depend on the devices here.

    Returns:
      The exit status: 1 if the step does not fit into memory.

    Raises:
      ValueError, FileNotFoundError: as `fit.fit`, before its first step.
    """
    tell = say if jax.process_index() == 0 else lambda text: None
    for topology in topologies:
        search.fitted(run, topology)
    mesh = _mesh(run, tell) if not topologies else _one_device()
    files = load.open_frozen(run)
    load.frozen_tensors(run, files.tensors)
    names = (f"{name} {one['path']}" for name, one in files.identity.items())
    tell(f"frozen files: {messages.names(names)}: complete, of the right shapes")
    done = resume.finished(folder, run, extend=extend)
    saved = _check_folder(run, folder, files, extend=extend, warm_start=warm_start, tell=tell)
    if done is not None:
        tell("nothing to train: all steps are done")
        return 0
    _check_records(run, folder, mesh, saved, tell)
    return _check_memory(run, mesh, tell) if not topologies else 0


def _mesh(run: schema.Config, tell: Callable[[str], None]) -> jax.sharding.Mesh:
    mesh = sharding.make_mesh(run.mesh)
    sharding.check_rows(run.data, mesh, grad_accum_steps=run.train.grad_accum_steps)
    processes = messages.counted(jax.process_count(), "process", "processes")
    tell(f"mesh: {sharding.describe(mesh)}, {processes}")
    return mesh


def _one_device() -> jax.sharding.Mesh:
    """A mesh for which this process reads whole batches."""
    return sharding.make_mesh(schema.MeshConfig(), jax.local_devices()[:1])


def _check_folder(
    run: schema.Config,
    folder: Path,
    files: load.FrozenWeights,
    *,
    extend: bool,
    warm_start: run_folder.RunStep | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Returns the metadata of the checkpoint that the run would begin with; of a new run step 0 alone."""
    root = folder / run_folder.CHECKPOINTS
    if not checkpoint.exists(root):
        origin = ""
        if warm_start is not None:
            origin = f", with the adapters of {load.find_adapters(run, warm_start).folder}"
        tell(f"run: {folder}, new{origin}")
        return {"step": 0}
    saved = checkpoint.newest(root)
    load.check_identity(saved.metadata["frozen"], files.identity, place=str(saved.folder))
    tell(f"run: {folder}, resumes at step {saved.metadata['step']}")
    if changed := resume.check_config(folder, run, extend=extend):
        tell(changed)
    return saved.metadata


def _check_records(
    run: schema.Config,
    folder: Path,
    mesh: jax.sharding.Mesh,
    saved: Mapping[str, Any],
    tell: Callable[[str], None],
) -> None:
    missing = mixture.missing_records(run.data)
    if missing and run.data.prepare is not None:
        tell(f"records: to be made: {messages.names(missing)}")
        return
    identity, step = mixture.records_identity(run.data), saved["step"]
    resume.check_records(saved.get("records", {}), identity, folder=folder)
    history, changes = mixing.resume(folder / run_folder.MIXTURE, run.data, step)
    data = begin.mixture_of(run, None, mesh, history)
    learnable.check(run, lambda n: data[step + n], say=tell)
    tell(f"records: in {run.data.root}, the batch of step {step + 1} is made")
    if changes:
        tell(changes)


def _check_memory(run: schema.Config, mesh: jax.sharding.Mesh, tell: Callable[[str], None]) -> int:
    lowered = compiled_step.lower(run, mesh, compiled_step.step_arguments(run, mesh))
    try:
        size = compiled_step.peak_memory(lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and compiled_step.out_of_hbm(error) is None:
            raise
        tell(f"memory: does not fit: {str(error).splitlines()[0]}")
        return 1
    limit = _limit(mesh)
    fits = distributed.anywhere(size > limit) is False
    tell(
        f"memory: a step takes {size / 1e9:.2f} GB on each device, which has {limit / 1e9:.1f} GB:"
        f" {'fits' if fits else 'does not fit; `mvjax plan --fit` looks for settings that do'}"
    )
    return 0 if fits else 1


def _limit(mesh: jax.sharding.Mesh) -> float:
    """Bytes that each device of this process may use; CPU devices share the machine's."""
    devices = mesh.local_devices
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in one for one in stats):
        return float(min(one["bytes_limit"] for one in stats))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
