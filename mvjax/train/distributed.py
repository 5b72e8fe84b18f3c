"""Multi-process training: joining the processes, the rows that each feeds, and agreement between them.

A single process needs nothing. Cloud TPU, GKE, SLURM and Open MPI are detected; elsewhere, three variables
are set in every process:

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
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mvjax import types
from mvjax.train import joining, sharding, signals

COORDINATOR, COUNT, INDEX = "MVJAX_COORDINATOR", "MVJAX_PROCESSES", "MVJAX_PROCESS"


@contextlib.contextmanager
def session(folder: Path | None = None) -> Iterator[None]:
    """Joins the processes of this run for as long as it lasts; before any other use of jax.

    Those that wait say for whom, if they see a common `folder` of the run.

    After an error it does not shut down jax.distributed, which waits for all processes: the others, blocked
    in a step, notice by losing this one.

    Raises:
      ValueError: if the three variables do not make sense.
    """
    joined = _join(folder)
    if joined and threading.current_thread() is threading.main_thread():
        # jax handles it for its preemption service, which is not used
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    if joined:
        jax.distributed.shutdown()


def name() -> str:
    """Returns the name of this process in messages; empty if it is the only one."""
    count = jax.process_count()
    return f"process {jax.process_index()} of {count}" if count > 1 else ""


def is_first() -> bool:
    """Returns whether this is the process that writes and prints for all."""
    return jax.process_index() == 0


def from_first(make: Callable[[], Any]) -> Any:
    """Returns what the first process makes (JSON values), in every process; its error too.

    Raises:
      ValueError: the first process's message.
    """
    if jax.process_count() == 1:
        return make()
    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": make()}
        except (ValueError, OSError) as error:
            answer = {"error": str(error)}
    text = json.dumps(answer).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.frombuffer(text.ljust(size)[:size], np.uint8)  # of the others the size alone counts
    answer = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))))
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["value"]


def to_first(state: Any) -> Any:
    """Returns the arrays of a tree whole, in numpy, in the first process; elsewhere empty ones."""

    def gathered(
        leaf: jax.Array,
    ) -> np.ndarray:  # one after the other: they need not all fit a device
        whole = np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return whole if jax.process_index() == 0 else whole[:0].copy() if whole.ndim else whole

    return jax.tree.map(gathered, state)


def hosts() -> list[str]:
    """Returns the names of the hosts of all processes; waits for them."""
    name = np.frombuffer(socket.gethostname().encode()[:64].ljust(64), np.uint8)
    names = np.asarray(multihost_utils.process_allgather(name)).reshape(-1, len(name))
    return [bytes(row).decode(errors="replace").strip() for row in names]


def anywhere(flag: bool) -> bool:
    """Returns whether the flag is set in any process; waits for all of them."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))


class BatchFeed:
    """Makes global batches of per-process batches: a process reads the rows that its devices hold.

    Processes that hold the same rows, because the tensor axis spans them, read the same ones.

    Of every global batch this process reads part `index` of `count`; its data `shards` are ascending.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Splits the global batch into parts.

        Raises:
          ValueError: if two processes share some rows but not all.
        """
        self._rows = sharding.rows(mesh)
        shards = math.prod(mesh.shape[axis] for axis in sharding.ROWS)
        by_process: dict[int, set[int]] = {}
        for device, index in self._rows.devices_indices_map((shards,)).items():
            by_process.setdefault(device.process_index, set()).add(index[0].start or 0)
        parts = sorted({tuple(sorted(rows)) for rows in by_process.values()})
        if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != shards:
            raise ValueError(
                f"mesh: expected processes that hold the same rows of a batch or none in common, got parts "
                f"{parts} of {shards} on {sharding.describe(mesh)}; choose a tensor axis that divides "
                f"the {jax.local_device_count()} devices of a process, or is a multiple of them"
            )
        self.shards = tuple(sorted(by_process[jax.process_index()]))
        self.index, self.count = parts.index(self.shards), len(parts)

    def __call__(self, batch: types.Batch) -> types.Batch:
        """Returns the global batch, on the mesh; `batch` has this process's rows, in their global order."""
        return jax.make_array_from_process_local_data(self._rows, batch)


class Request:
    """A request by any process, to stop or to save, that all grant after the same step.

    Several processes reduce their requests on their devices each step and read the result a step later,
    so that none waits for it. Any thread or signal handler may set `wished`.
    """

    def __init__(self, mesh: Mesh, wished: threading.Event) -> None:
        self.wished = wished
        self._sharding = NamedSharding(mesh, PartitionSpec(sharding.AXES))
        self._any = jax.jit(jax.numpy.any, out_shardings=sharding.replicated(mesh))
        self._asked: jax.Array | None = None

    def granted(self) -> bool:
        """Asks all processes; call it once a step in each. Returns the result of the previous call."""
        if jax.process_count() == 1:
            return self.wished.is_set()
        before, wished = self._asked, np.array([self.wished.is_set()])
        mesh = self._sharding.mesh
        flags = jax.make_array_from_callback((mesh.size,), self._sharding, lambda _: wished)
        self._asked = self._any(flags)
        return before is not None and bool(before)

    def withdraw(self) -> None:
        """Forgets what was asked for, in every process after the same step."""
        self.wished.clear()
        self._asked = None


def _join(folder: Path | None) -> bool:
    """Starts jax.distributed if there are several processes, and returns whether there are."""
    given = {name: os.environ[name] for name in (COORDINATOR, COUNT, INDEX) if os.environ.get(name)}
    if given:
        count, index = _checked(given)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        with _waiting(folder, index, count, given[COORDINATOR]):
            jax.distributed.initialize(
                given[COORDINATOR], count, index, cluster_detection_method="deactivate"
            )
        return True
    tasks, ranks = _slurm_tasks(), int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    if (tasks or ranks) > 1:  # jax detects the rest
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        index = os.environ.get("SLURM_PROCID" if tasks else "OMPI_COMM_WORLD_RANK", "0")
        nodes = f" on {os.environ['SLURM_STEP_NODELIST']}" if tasks else ""
        with _waiting(folder, int(index), tasks or ranks, f"process 0{nodes}"):
            jax.distributed.initialize(num_processes=tasks)
        return True
    if tasks or not _tpu_chips():
        return False
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "localhost").split(",")  # of GKE
    try:
        with _waiting(folder, int(os.environ.get("TPU_WORKER_ID", "0")), len(hosts), hosts[0]):
            jax.distributed.initialize()  # reads Cloud TPU's metadata or GKE's variables
    except ValueError:  # neither of them: the chips of one machine
        return False
    return True


@contextlib.contextmanager
def _waiting(folder: Path | None, index: int, count: int, address: str) -> Iterator[None]:
    """Inside, a signal ends this process at once, and the processes that have not come are named."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.Signals())
        if folder is not None and count > 1:
            stack.enter_context(
                joining.announced(folder, index=index, count=count, address=address)
            )
        yield


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
        listing = "; ".join(problems)
        raise ValueError(f"several processes: {listing}; set all three in every process, or none")
    return numbers[COUNT], numbers[INDEX]


def _slurm_tasks() -> int | None:
    """How many tasks the SLURM step has that this process belongs to; None outside of a step.

    SLURM_NTASKS is of the job in an interactive step, which has one task (`salloc`, `srun --pty bash`); the
    batch script itself is no step, and has no list of its nodes.
    """
    if "SLURM_STEP_NODELIST" not in os.environ:
        return None
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or "1")


def _tpu_chips() -> bool:
    if (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu":
        return False
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
