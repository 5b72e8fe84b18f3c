import pytest
import toy_run

from mvjax.config import schema
from mvjax.train import chips, sharding, throughput


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
    assert throughput.chip(kind) is chips.CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA L400", ""])
def test_devices_without_a_published_peak(kind):
    assert throughput.chip(kind) is None


def test_of_a_run(tmp_path, monkeypatch):
    run = toy_run.make_config(tmp_path)
    mesh = sharding.make_mesh(schema.MeshConfig())
    worth = throughput.of(run, mesh)
    assert worth.frames == 4 * 9 + 8 * 7 and worth.peak is None
    assert worth.flops > 4 * worth.frames * 3 * 3 * 24 * 66  # the backbone's MLPs alone
    monkeypatch.setattr(throughput, "chip", lambda _: chips.CHIPS["v5e"])
    assert throughput.of(run, mesh).peak == 8 * 197e12
