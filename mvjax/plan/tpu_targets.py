"""Describes TPU slices that need not be here to libtpu."""

from __future__ import annotations

import math
import os
from typing import Any

from jax.experimental import topologies

from mvjax.train import chips

# libtpu asks the cloud's metadata server what machine this is, and lets one process at a time load it.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # any that it knows; the topology is named below
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def devices(topology: chips.Topology) -> list[Any]:
    """Returns the devices of a topology.

    Raises:
      ValueError: if libtpu is missing or refuses the slice.
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
    return described.devices
