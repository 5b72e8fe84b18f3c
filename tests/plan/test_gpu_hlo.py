"""What programs for GPUs have of their own: kernels of cuBLAS, cuDNN and Triton, exchanges of nodes."""

import jax
import pytest

from mvjax.plan import from_compiler, gpu_targets, hlo, hlo_cost
from mvjax.train import chips

# The forms of jaxlib 0.10.2, shortened: B=2 T=64 S=96 N=4 H=32.
MODULE = """HloModule m, is_scheduled=true

%triton (p: bf16[64,256], q: bf16[256,512]) -> bf16[64,512] {
  %p = bf16[64,256]{1,0} parameter(0)
  %q = bf16[256,512]{1,0} parameter(1)
  ROOT %dot = bf16[64,512]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%slice (s: bf16[8,256,512], i: s32[]) -> bf16[256,512] {
  %s = bf16[8,256,512]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,256,512]{2,1,0} dynamic-slice(%s, %i, %zero, %zero), dynamic_slice_sizes={1,256,512}
  ROOT %view = bf16[256,512]{1,0} bitcast(%one)
}

%graph (x: bf16[64,256], w: bf16[256,512]) -> bf16[64,512] {
  %x = bf16[64,256]{1,0} parameter(0)
  %w = bf16[256,512]{1,0} parameter(1)
  ROOT %gemm = bf16[64,512]{1,0} fusion(%x, %w), kind=kCustom, calls=%triton, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
}

ENTRY %main (q: bf16[2,64,4,32], k: bf16[2,96,4,32], x: bf16[64,256], s: bf16[8,256,512], i: s32[]) -> bf16[] {
  %q = bf16[2,64,4,32]{3,2,1,0} parameter(0)
  %k = bf16[2,96,4,32]{3,2,1,0} parameter(1)
  %x = bf16[64,256]{1,0} parameter(2)
  %s = bf16[8,256,512]{2,1,0} parameter(3)
  %i = s32[] parameter(4)
  %w = bf16[256,512]{1,0} fusion(%s, %i), kind=kLoop, calls=%slice
  %call = bf16[64,512]{1,0} call(%x, %w), to_apply=%graph, backend_config={"command_buffer":{}}
  %see = (bf16[2,4,64,32]{3,1,2,0}, u8[1000]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"dimensions": ["2", "4", "64", "96"]}, "mask_type": "NO_MASK", "sliding_window_length": 0}}
  %self = (bf16[2,4,64,32]{3,1,2,0}, bf16[2,4,64,32]{3,1,2,0}, bf16[2,4,64,32]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"dimensions": ["2", "4", "64", "64"]}, "mask_type": "CAUSAL", "sliding_window_length": 10}}
  %lt = (bf16[64,128]{1,0}, s8[33554432]{0}) custom-call(%x, %x), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  %summed = (bf16[64,256]{1,0}, bf16[2,64,4,32]{3,2,1,0}) all-reduce-start(%x, %q), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %done = bf16[] custom-call(), custom_call_target="Other"
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def cost() -> hlo_cost.ProgramCost:
    return hlo_cost.program_cost(hlo.parse(MODULE), devices=4)


def ops(cost: hlo_cost.ProgramCost, kind: str) -> list[tuple[float, float]]:
    return [(op.flops, op.hbm_bytes) for op in cost.ops if op.kind == kind]


def test_kernels_of_libraries_and_triton_are_counted_by_kind(cost):
    x, w, y = 64 * 256 * 2, 256 * 512 * 2, 64 * 512 * 2
    q, k = 2 * 64 * 4 * 32 * 2, 2 * 96 * 4 * 32 * 2
    assert ops(cost, "Triton matmuls") == [(2 * 64 * 256 * 512, x + w + y)]
    assert ops(cost, "copies") == [(0, 2 * w)]
    pairs = sum(min(n + 1, 10) for n in range(64))  # under the mask, within the window
    assert ops(cost, "attention kernels") == [
        (2 * 2 * 2 * 4 * 64 * 96 * 32, q + 2 * k + q),  # without the workspace
        (2 * 5 * 2 * 4 * pairs * 32, 3 * q + 3 * q),
    ]
    assert ops(cost, "cuBLAS, cuDNN") == [(2 * 64 * 128 * 256, 2 * x + 64 * 128 * 2)]
    assert ops(cost, "collectives") == [(0, 2 * (x + q))]
    summed = from_compiler.kernels(cost)
    assert sum(one.flops for one in summed.values()) == cost.flops
    assert sum(one.hbm_bytes for one in summed.values()) == cost.hbm_bytes


@pytest.mark.parametrize(
    ("kind", "groups", "network"),
    [
        ("all-gather", [[0, 1, 2, 3], [4, 5, 6, 7]], 0.0),
        ("all-gather", [[0, 1, 2, 3, 4, 5, 6, 7]], 1 / 7),
        ("all-reduce", [[0, 4], [1, 5], [2, 6], [3, 7]], 1.0),
        ("collective-permute", [[0, 1], [1, 2]], 0.0),
        ("collective-permute", [[3, 4], [0, 1]], 1.0),
    ],
)
def test_what_comes_from_another_node_goes_over_the_network(kind, groups, network):
    """Two nodes of four: of a gather over all, each value enters a node once, by one of four cards."""
    one = hlo_cost.Collective(kind, 3.0, 70.0, groups)
    parts = from_compiler.between_nodes(
        hlo_cost.ProgramCost([], [one]), 4 * [0] + 4 * [1]
    ).collectives
    between = [part for part in parts if part.kind == hlo_cost.BETWEEN_SLICES]
    assert sum(part.received for part in between) == pytest.approx(70 * network)
    assert sum(part.received for part in parts) == pytest.approx(70)
    topology = chips.topology("h100:2x4")
    chip = topology.chip
    mesh = jax.sharding.Mesh(jax.devices(), "x")
    times = from_compiler.step_times(
        hlo_cost.ProgramCost([hlo_cost.Op("", 1.0, 0.0, 0.0)], parts), topology, mesh
    )
    slow, fast = 3 * 70 * network, 3 * 70 * (1 - network)
    expected = slow / chip.network_bandwidth + fast / chip.link_bandwidth
    assert times.collectives == pytest.approx(expected)


def test_a_gpu_is_expected_to_run_kernel_after_kernel_at_rates_that_were_measured():
    topology = chips.topology("h200:1")
    ops = [
        hlo_cost.Op("", 2.0, 989e12, 1.0, "Triton matmuls"),
        hlo_cost.Op("", 1.0, 989e12, 1.0, "attention kernels"),
        hlo_cost.Op("", 3.0, 0.0, 4.8e12, "copies"),
    ]
    mesh = jax.sharding.Mesh(jax.devices()[:1], "x")
    times = from_compiler.step_times(hlo_cost.ProgramCost(ops, []), topology, mesh)
    assert times.roofline == pytest.approx(3) and times.no_overlap == pytest.approx(6)
    assert times.expected == pytest.approx(2 / 0.73 + 1 / 0.36 + 3 / 0.61)
    tpu = from_compiler.step_times(hlo_cost.ProgramCost(ops, []), chips.topology("v5e:1x1"), mesh)
    assert tpu.kernels is None


def test_every_gpu_is_described_to_the_compiler():
    for chip in (chip for chip in chips.CHIPS.values() if chip.kind == "gpu"):
        text = gpu_targets.target_config(chip)
        described = float(text.partition("device_memory_size: ")[2].partition("\n")[0])
        assert described * 80 // 100 == pytest.approx(chip.hbm_bytes * chips.USABLE["gpu"], abs=2)
        name = text.partition('device_description_str: "')[2].partition('"')[0]
        assert chips.of_device(name) is chip
        assert text.count("{") == text.count("}")
