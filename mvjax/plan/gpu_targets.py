"""Describes GPUs that need not be here, and the nodes that they are in, to XLA's compiler."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Any

from jax.experimental import topologies

from mvjax.train import chips

EXTRA = "gpu-plan"
PLUGIN = "jax_cuda13_plugin"
# Timing kernels needs the GPU: without it the compiler takes its first choice of tiles for each.
COMPILER_OPTIONS: dict[str, Any] = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_shard_autotuning": False,
}
# Shares of the published peaks (FLOP/s of kinds with matmuls, else HBM bandwidth) that kernels of a kind
# reached in the 8.3 B step on an H200 with jax 0.11.2 (BENCHMARKS.md).
REACHED = {"Triton matmuls": 0.73, "cuBLAS, cuDNN": 0.73, "attention kernels": 0.36}
REACHED_OF_MEMORY = 0.61
# Nor does it then find out that its own kernels do not take a matmul of some odd widths, as in tiny models;
# autotuning would fall back to cuBLAS.
NO_TILES = "Couldn't find output tile sizes"
CUBLAS_OPTIONS: dict[str, Any] = {**COMPILER_OPTIONS, "xla_gpu_enable_triton_gemm": False}
UNKNOWN = (
    "Compiling without the GPU cannot know how long a kernel takes, nor which of its variants autotuning"
    "\nwould choose (here the first, with its temporaries), nor the buffers of cuDNN and NCCL and the CUDA"
    f"\ncontext, for which {1 - chips.USABLE['gpu']:.0%} of the GPU's memory is left."
)


@dataclasses.dataclass(frozen=True)
class _Target:
    """What the compiler must know of a GPU beyond `chips.Chip`; NVIDIA's architecture papers and data sheets.

    Attributes:
      name: as the driver gives it.
      capability: compute capability.
      multiprocessors, lanes: streaming multiprocessors, and float32 lanes of each.
      threads: that one multiprocessor holds.
      shared: bytes of shared memory of one multiprocessor.
      l2: bytes of the L2 cache.
      clock: GHz at most.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    threads: int
    shared: int
    l2: int
    clock: float


_KIB, _MIB = 2**10, 2**20
_TARGETS = {
    "h100": _Target(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 2048, 228 * _KIB, 50 * _MIB, 1.98
    ),
    "h200": _Target("NVIDIA H200", (9, 0), 132, 128, 2048, 228 * _KIB, 50 * _MIB, 1.98),
    "b200": _Target("NVIDIA B200", (10, 0), 148, 128, 2048, 228 * _KIB, 126 * _MIB, 1.965),
    "a100": _Target("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 2048, 164 * _KIB, 40 * _MIB, 1.41),
    "l4": _Target("NVIDIA L4", (8, 9), 58, 128, 1536, 100 * _KIB, 48 * _MIB, 2.04),
    "l40s": _Target("NVIDIA L40S", (8, 9), 142, 128, 1536, 100 * _KIB, 96 * _MIB, 2.52),
}  # fmt: skip


def is_hopper_or_newer(chip: chips.Chip) -> bool:
    """Whether a GPU is of compute capability 9 or more: XLA schedules their programs differently."""
    return _TARGETS[chip.name].capability >= (9, 0)


def installed() -> bool:
    """Whether the compiler is: jax's CUDA plugin of the extra `gpu-plan`."""
    return importlib.util.find_spec(PLUGIN) is not None


def prepare() -> None:
    """Lets the plugin be loaded without a driver, whose versions it asks for; before jax's first backend."""
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def devices(topology: chips.Topology) -> list[Any]:
    """Returns the devices of a topology, node by node, each node a process of its own.

    Raises:
      ValueError: if the compiler is not installed, or refuses the description.
    """
    if not installed():
        raise ValueError(
            f"--topology {topology.name}: the compiler for GPUs is not installed:"
            f' pip install "mvjax[{EXTRA}]" (4.6 GB); --count does without it'
        )
    prepare()
    try:
        described = topologies.get_topology_desc(
            topology.name,
            "cuda",
            target_config=target_config(topology.chip),
            topology=f"{topology.slices}x1x{topology.devices_per_slice}",
        )
    except Exception as error:  # jaxlib raises several kinds
        raise ValueError(
            f"--topology {topology.name}: cannot compile for it: {str(error).splitlines()[0]}"
        ) from error
    return described.devices


def target_config(chip: chips.Chip) -> str:
    """Returns a GPU as XLA's GpuTargetConfigProto, in text format."""
    one = _TARGETS[chip.name]
    reserved = _KIB  # of a block's shared memory, for the system
    # Of this the compiler takes 80% as what a program may use, and computes again what would not fit; on the
    # device it is told what the allocator has.
    memory = chip.hbm_bytes * chips.USABLE["gpu"] / 0.8
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * _KIB}
  shared_memory_per_block_optin: {one.shared - reserved}
  shared_memory_per_core: {one.shared}
  threads_per_core_limit: {one.threads}
  core_count: {one.multiprocessors}
  fpus_per_core: {one.lanes}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.hbm_bandwidth:.0f}
  l2_cache_size: {one.l2}
  clock_rate_ghz: {one.clock}
  device_memory_size: {memory:.0f}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {one.capability[0]} minor: {one.capability[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{one.name}"
"""
