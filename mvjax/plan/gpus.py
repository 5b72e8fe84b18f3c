"""Finds the GPUs of a topology among the devices of this machine."""

from __future__ import annotations

import collections
from typing import Any

import jax

from mvjax.train import chips


def local_gpus(topology: chips.Topology) -> tuple[tuple[Any, ...], str]:
    """Returns (the first GPUs of a topology's kind, ""), or ((), why there are too few).

    TPUs are not looked for: that would take them from whoever uses them, and on one host of a slice wait
    for all the others.
    """
    try:
        devices = jax.devices("gpu")
    except RuntimeError:
        return (), "no GPU is here that jax can use"
    matching = [d for d in devices if chips.of_device(d.device_kind) is topology.chip]
    if len(matching) >= topology.devices:
        return tuple(matching[: topology.devices]), ""
    kinds = collections.Counter(device.device_kind for device in devices)
    listed = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
    return (), f"here: {listed}; asked for: {topology.devices} x {topology.chip.name}"
