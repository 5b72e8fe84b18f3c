import itertools

import pytest

from mvjax.train import chips


@pytest.mark.parametrize(
    ("name", "devices"),
    [("v5e:8x8", 64), ("v5p:2x2x4", 16), ("v6e:4x4", 16), ("tpu7x:2x2x1", 8), ("h100:8", 8)],
)
def test_devices(name, devices):
    assert chips.topology(name).devices == devices


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:4x4", "chips: v4, v5e"),
        ("v5e", "expected CHIP:SHAPE"),
        ("v5e:2x2x4", "v5e takes two sizes"),
        ("v5p:4x4", "v5p takes three sizes"),
        ("h100:4x4", "h100 takes a number"),
        ("v5e:0x4", "v5e takes two sizes"),
    ],
)
def test_bad_topologies(name, message):
    with pytest.raises(ValueError, match=message):
        chips.topology(name)


def box(*sizes: int) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(n) for n in sizes)))


@pytest.mark.parametrize(
    ("name", "group", "links"),
    [
        ("v5e:4x4", box(4, 4), 2),  # a corner has two links
        ("v5e:4x4", box(1, 4), 1),
        ("v5e:16x16", box(16, 16), 4),  # a torus
        ("v5e:16x16", box(16, 1), 2),
        ("v5e:16x16", box(4, 1), 1),
        ("v5p:2x2x4", box(2, 2, 4), 3),
        ("v5p:4x4x4", box(4, 4, 4), 6),
        ("tpu7x:2x2x1", box(1, 1, 1), 1),
    ],
)
def test_what_a_group_receives(name, group, links):
    topology = chips.topology(name)
    assert topology.group_bandwidth(group) == links * topology.chip.link_bandwidth


def test_a_switch_serves_every_group_alike():
    topology = chips.topology("h100:8")
    assert (
        topology.group_bandwidth(box(2))
        == topology.group_bandwidth(box(8))
        == topology.chip.link_bandwidth
    )


def test_every_chip_names_its_source():
    assert all(chip.source and chip.peak_flops > 1e14 for chip in chips.CHIPS.values())


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
    assert chips.of_device(kind) is chips.CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA L400", ""])
def test_devices_without_a_published_peak(kind):
    assert chips.of_device(kind) is None
