import pytest
import toy_run

from mvjax import config as config_lib
from mvjax.train import chips, effort, sharding


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_devices_by_the_names_that_jax_gives(kind, name):
    assert effort.chip(kind) is chips.CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA L400", ""])
def test_devices_without_a_published_peak(kind):
    assert effort.chip(kind) is None


def test_of_a_run(tmp_path, monkeypatch):
    run = toy_run.make_config(tmp_path)
    mesh = sharding.make_mesh(config_lib.MeshConfig())
    worth = effort.of(run, mesh)
    assert worth.frames == 4 * 9 + 8 * 7 and worth.peak is None
    assert worth.flops > 4 * worth.frames * 3 * 3 * 24 * 66  # the backbone's MLPs alone
    monkeypatch.setattr(effort, "chip", lambda _: chips.CHIPS["v5e"])
    assert effort.of(run, mesh).peak == 8 * 197e12
