"""Finds the GPUs of a topology among the devices of this machine."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import jax

from mvjax.train import chips


class Found(NamedTuple):
    """Devices of the asked kind, as many as asked for, or none and why."""

    devices: tuple[Any, ...]
    reason: str = ""


def gpus(topology: chips.Topology) -> Found:
    """Returns the first GPUs of a topology's kind, if enough are here.

    TPUs are not looked for: that would take them from whoever uses them, and on one host of a slice wait
    for all the others.
    """
    try:
        here = jax.devices("gpu")
    except RuntimeError:
        return Found((), "no GPU is here that jax can use")
    of_kind = [device for device in here if chips.of_device(device.device_kind) is topology.chip]
    if len(of_kind) >= topology.devices:
        return Found(tuple(of_kind[: topology.devices]))
    kinds = collections.Counter(device.device_kind for device in here)
    listed = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
    return Found((), f"here: {listed}; asked for: {topology.devices} x {topology.chip.name}")
