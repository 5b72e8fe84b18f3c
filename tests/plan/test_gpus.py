import dataclasses

import jax
import pytest

from mvjax.plan import gpus as gpus_lib
from mvjax.train import chips


@dataclasses.dataclass(frozen=True)
class Device:
    device_kind: str
    id: int


def gpus(monkeypatch, *kinds: str) -> list[Device]:
    here = [Device(kind, number) for number, kind in enumerate(kinds)]
    monkeypatch.setattr(jax, "devices", lambda backend: here if backend == "gpu" else [])
    return here


def test_without_a_gpu_none_is_found():
    devices, reason = gpus_lib.local_gpus(chips.topology("h100:8"))
    assert not devices and reason == "no GPU is here that jax can use"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_a_gpu_is_of_one_kind(monkeypatch, kind, name):
    (device,) = gpus(monkeypatch, kind)
    for chip in ("h100", "h200", "a100", "l4", "l40s"):
        devices, reason = gpus_lib.local_gpus(chips.topology(f"{chip}:1"))
        assert devices == ((device,) if chip == name else ()), chip
        assert (reason == "") == (chip == name)


def test_as_many_are_taken_as_asked_for_of_the_asked_kind(monkeypatch):
    here = gpus(monkeypatch, "NVIDIA L4", "NVIDIA H200", "NVIDIA H200", "NVIDIA H200")
    assert gpus_lib.local_gpus(chips.topology("h200:2"))[0] == tuple(here[1:3])


def test_too_few_or_other_gpus_are_named(monkeypatch):
    gpus(monkeypatch, "NVIDIA H200", "NVIDIA H200", "NVIDIA L40S")
    devices, reason = gpus_lib.local_gpus(chips.topology("h200:8"))
    assert not devices
    assert reason == "here: 2 x NVIDIA H200, 1 x NVIDIA L40S; asked for: 8 x h200"
