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
        ("v5e:2x2x2x4", "v5e takes two sizes, such as 4x4, and before them that of slices"),
        ("v5p:4x4", "v5p takes three sizes"),
        ("h100:4x4x4", "h100 takes a number, and before it that of nodes"),
        ("v5e:0x4x4", "all of 1 or more"),
        ("l4:2x8", "between l4 slices or nodes is not known, that of v5e, "),
        ("v5e:0x4", "v5e takes two sizes"),
        (
            "v5e:4x5",
            "--topology v5e:4x5: no v5e slice is 4x5\nv5e slices: 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16$",
        ),
        ("v6e:32x8", "no v6e slice is 32x8; did you mean v6e:16x16\\?\nv6e slices: 1x1, 2x2"),
        ("v5p:2x4x2", "did you mean v5p:2x2x4\\?\nv5p slices: 2x2x1, .* of at most 6144 chips$"),
        ("v4:8x16x64", "no v4 slice is 8x16x64\nv4 slices: .* of at most 4096 chips$"),
        ("v2-8", "--topology v2-8: v2 TPUs are not supported; supported: v4, v5e"),
        ("v3-32", "v3 TPUs are not supported"),
        (
            "v5litepod-12",
            "no slice has 12 chips; the nearest that exist: v5litepod-1, .*v5litepod-8, v5litepod-16",
        ),
        (
            "v5p-33",
            "no slice has 33 TensorCores, two a chip; the nearest that exist: .*v5p-32, v5p-64",
        ),
        ("h100-8", "expected CHIP:SHAPE"),
    ],
)
def test_bad_topologies(name, message):
    with pytest.raises(ValueError, match=message):
        chips.topology(name)


def test_several_slices():
    two = chips.topology("v5litepod-16", slices=2)
    assert two == chips.topology("v5e:2x4x4") and two.name == "v5e:2x4x4"
    assert (two.slices, two.shape, two.devices, two.devices_per_slice) == (2, (4, 4), 32, 16)
    assert chips.topology("h100:2x8").devices == 16
    with pytest.raises(ValueError, match="v5e takes two sizes"):
        chips.topology("v5e:2x4x4", slices=2)


@pytest.mark.parametrize(
    ("google", "name", "devices"),
    [
        ("v5litepod-1", "v5e:1x1", 1),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v5litepod-4x8", "v5e:4x8", 32),
        ("v5e-256", "v5e:16x16", 256),
        ("v6e-16", "v6e:4x4", 16),
        ("v4-8", "v4:2x2x1", 4),  # TensorCores, two a chip
        ("v4-32", "v4:2x2x4", 16),
        ("v4-512", "v4:4x8x8", 256),
        ("v5p-32", "v5p:2x2x4", 16),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v5p-512", "v5p:4x8x8", 256),
        ("v5p-12288", "v5p:16x16x24", 6144),
        ("tpu7x-8", "tpu7x:2x2x1", 8),  # the two TensorCores of a chip are two devices
        ("tpu7x-128", "tpu7x:4x4x4", 128),
    ],
)
def test_googles_names_of_slices(google, name, devices):
    topology = chips.topology(google)
    assert (topology.name, topology.devices) == (name, devices)


def test_a_slice_of_whole_cubes_may_be_turned():
    assert chips.topology("v4:8x4x4").devices == chips.topology("v4:4x4x8").devices == 128


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
