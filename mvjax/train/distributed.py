"""Several processes as one run: joining them, who feeds which rows, and agreeing on what to do next.

A single process needs nothing. Several are found by themselves on Cloud TPU, GKE, SLURM and Open MPI;
anything else sets three variables, in every process:

    MVJAX_COORDINATOR=host:port   of process 0, reachable from all
    MVJAX_PROCESSES=4             how many there are
    MVJAX_PROCESS=0               which one this is
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped

from mvjax import types
from mvjax.train import sharding

COORDINATOR, COUNT, INDEX = "MVJAX_COORDINATOR", "MVJAX_PROCESSES", "MVJAX_PROCESS"
Json = Any


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Joins the processes of this run for as long as it lasts; before any other use of jax.

    After an error there is no farewell: the other processes wait in the middle of a step, so they learn
    of it by losing this one.

    Raises:
      ValueError: if the three variables do not make sense.
    """
    joined = _join()
    if joined and threading.current_thread() is threading.main_thread():
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # jax would catch it, for a service not used here
    yield
    if joined:
        jax.distributed.shutdown()


def name() -> str:
    """Returns this process in words: empty if it is the only one."""
    count = jax.process_count()
    return f"process {jax.process_index()} of {count}" if count > 1 else ""


def from_first(make: Callable[[], Json]) -> Json:
    """Returns what the first process makes (JSON values), in every process; its error too.

    Raises:
      ValueError: the first process's message.
    """
    if jax.process_count() == 1:
        return make()
    answer: dict[str, Json] = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": make()}
        except (ValueError, OSError) as error:
            answer = {"error": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        buffer[:] = text
    answer = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))))
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["value"]


def anywhere(flag: bool) -> bool:
    """Returns whether the flag is set in any process; waits for all of them."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))


class BatchFeed:
    """Makes global batches of what each process has read: its rows are those that its devices hold.

    Processes that hold the same rows, because the tensor axis spans them, read the same ones.

    Attributes:
      index: which part of every batch this process reads, for `mixture.batches`.
      count: how many parts there are.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Finds the parts.

        Raises:
          ValueError: if two processes share some rows but not all.
        """
        self._placed = sharding.rows(mesh)
        self._shards = math.prod(mesh.shape[axis] for axis in sharding.ROWS)
        held: dict[int, set[int]] = {}
        for device, index in self._placed.devices_indices_map((self._shards,)).items():
            held.setdefault(device.process_index, set()).add(index[0].start or 0)
        parts = sorted({tuple(sorted(rows)) for rows in held.values()})
        if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != self._shards:
            raise ValueError(
                f"mesh: expected processes that hold the same rows of a batch or none in common, got parts "
                f"{parts} of {self._shards} on {sharding.describe(mesh)}; choose a tensor axis that divides "
                f"the {jax.local_device_count()} devices of a process, or is a multiple of them"
            )
        self._mine = tuple(sorted(held[jax.process_index()]))
        self.index, self.count = parts.index(self._mine), len(parts)

    def __call__(self, batch: types.Batch) -> types.Batch:
        """Returns the global batch, on the mesh, of this process's rows."""
        if self.count == 1 and jax.process_count() == 1:
            return jax.device_put(batch, self._placed)
        return jax.tree.map(self._place, batch)

    def _place(self, local: Shaped[np.ndarray, "B ..."]) -> jax.Array:
        shape = (local.shape[0] * self.count, *local.shape[1:])
        size = shape[0] // self._shards

        def rows(index: Any) -> np.ndarray:
            if not size:
                return local
            first = self._mine.index((index[0].start or 0) // size) * size
            return local[first : first + size]

        return jax.make_array_from_callback(shape, self._placed, rows)


class StopRequest:
    """The wish of any process to stop, which all grant after the same step.

    The answers of several processes are one small reduction on their devices, read a step later, so that
    nobody waits for it.

    Attributes:
      wished: set it to stop, from any thread or signal handler.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.wished = threading.Event()
        self._placed = NamedSharding(mesh, PartitionSpec(sharding.AXES))
        self._any = jax.jit(jax.numpy.any, out_shardings=sharding.replicated(mesh))
        self._asked: jax.Array | None = None

    def granted(self) -> bool:
        """Asks all processes; call it once a step in each of them. Returns the answer to the call before."""
        if jax.process_count() == 1:
            return self.wished.is_set()
        before, wished = self._asked, self.wished.is_set()
        flags = jax.make_array_from_callback(
            (self._placed.mesh.size,), self._placed, lambda _: np.array([wished])
        )
        self._asked = self._any(flags)
        return before is not None and bool(before)


def _join() -> bool:
    """Starts jax.distributed if there are several processes, and returns whether there are."""
    given = {name: os.environ[name] for name in (COORDINATOR, COUNT, INDEX) if os.environ.get(name)}
    if given:
        count, index = _checked(given)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            given[COORDINATOR], count, index, cluster_detection_method="deactivate"
        )
        return True
    if _launched_together():
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize()
        return True
    return _tpu_chips() and _join_tpu_hosts()


def _checked(given: dict[str, str]) -> tuple[int, int]:
    problems = [f"{name} is not set" for name in (COORDINATOR, COUNT, INDEX) if name not in given]
    if ":" not in given.get(COORDINATOR, ":"):
        problems.append(f"{COORDINATOR}: expected host:port, got {given[COORDINATOR]!r}")
    numbers = {}
    for variable in (COUNT, INDEX):
        if not given.get(variable, "0").isdigit():
            problems.append(f"{variable}: expected a number, got {given[variable]!r}")
        elif variable in given:
            numbers[variable] = int(given[variable])
    if len(numbers) == 2 and numbers[INDEX] >= numbers[COUNT]:
        problems.append(
            f"{INDEX}: expected a number below {COUNT}={numbers[COUNT]}, got {numbers[INDEX]}"
        )
    if problems:
        raise ValueError(
            "several processes: "
            + "; ".join(problems)
            + "; set all three in every process, or none"
        )
    return numbers[COUNT], numbers[INDEX]


def _launched_together() -> bool:
    """Whether srun or mpirun started this process as one of several; jax finds the rest by itself."""
    if "SLURM_STEP_NODELIST" in os.environ:  # a step: the batch script itself has no such list
        return int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1


def _tpu_chips() -> bool:
    if (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu":
        return False
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def _join_tpu_hosts() -> bool:
    """Cloud TPU's metadata or GKE's variables tell jax of the other hosts, if there are any."""
    try:
        jax.distributed.initialize()
    except ValueError:  # neither of them: the chips of one machine
        return False
    return True
