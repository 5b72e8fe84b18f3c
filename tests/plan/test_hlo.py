import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mvjax.plan import hlo, hlo_cost, hlo_ops


def walked(function, *arguments, devices=1) -> hlo_cost.ProgramCost:
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return hlo_cost.program_cost(hlo.parse(text), devices=devices)


def test_loops_are_multiplied_out():
    def body(x, w):
        for _ in range(2):
            x = jnp.tanh(x @ w)
        return x, None

    def function(x, w):
        x, _ = jax.lax.scan(body, x, w)
        return jax.lax.fori_loop(2, 9, lambda i, y: jnp.sin(y @ w[0]), x)

    x, w = jnp.ones((24, 40)), jnp.ones((5, 40, 40))
    assert walked(function, x, w).flops == (5 * 2 + 7) * 2 * 24 * 40 * 40


def test_collectives_are_counted_with_their_groups():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def function(x):
        inner = functools.partial(jax.lax.psum, axis_name="b")
        return jax.shard_map(
            inner, mesh=mesh, in_specs=PartitionSpec("a", "b"), out_specs=PartitionSpec("a")
        )(x)

    placed = NamedSharding(mesh, PartitionSpec("a", "b"))
    (one,) = walked(function, jax.device_put(jnp.ones((6, 20)), placed), devices=8).collectives
    assert one.kind == "all-reduce" and one.times == 1
    assert one.received == 2 * (3 * 5 * 4) * 3 / 4
    assert one.groups == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=4] {'x'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'y'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['x'=4] {'x':(2)2}", [[0, 1], [2, 3]]),
        (
            "replica_groups=mesh['x'=1,'y'=2,'z'=2], device_ids=([2,2]T(1,0)) {'x','y'}",
            [[0, 1], [2, 3]],
        ),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_replica_groups(text, expected):
    instruction = hlo.Instruction("r", "all-reduce", (), (), f", {text}, use_ids=true", False)
    assert hlo.groups(instruction, 4) == expected


def test_an_unknown_form_of_groups_is_an_error():
    instruction = hlo.Instruction("r", "all-reduce", (), (), ", replica_groups=circle", False)
    with pytest.raises(ValueError, match="r: unknown form of replica_groups: circle"):
        hlo.groups(instruction, 4)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("stride", "low", "dilate"), [(1, 0, 1), (2, 1, 1), (2, 4, 3), (7, 0, 8)])
def test_taps_of_padded_and_dilated_windows(kernel, stride, low, dilate):
    size, out = 5, 6
    values = {i * dilate for i in range(size)}
    for spread in (1, 2):
        expected = sum(
            o * stride - low + k * spread in values for o in range(out) for k in range(kernel)
        )
        assert hlo_ops._valid_taps(size, kernel, out, stride, low, dilate, spread) == expected


MODULE = """HloModule m, is_scheduled=true

%body (p: f32[8,16], q: s32[], r: f32[1,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %r = f32[1,16]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,16]{1,0} dynamic-slice(%p, %q, %zero), dynamic_slice_sizes={1,16}
  %sum = f32[1,16]{1,0} add(%slice, %r)
  ROOT %put = f32[8,16]{1,0} dynamic-update-slice(%p, %sum, %q, %zero)
}

ENTRY %main (a: f32[8,16], b: s32[], c: f32[1,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[1,16]{1,0:T(8,128)S(1)} parameter(2), frontend_attributes={kernel_metadata={
"a":"{\\"b\\": 512}"
}}, metadata={op_name="here"}
  ROOT %f = f32[8,16]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%body, metadata={op_name="there"}
}
"""


def test_a_fusion_moves_only_what_it_slices_and_updates():
    module = hlo.parse(MODULE)
    (op,) = hlo_cost.program_cost(module, devices=1).ops
    # the slice and the row that is added are read, one row is written; the index is 4 bytes
    assert op.hbm_bytes == 3 * 16 * 4 + 4
    assert op.op_name == "there" and op.flops == 0
    entry = module.computations["main"].instructions
    assert entry["c"].op_name == "here" and entry["c"].shapes[0].space == 1


# As libtpu writes int8 weights of a scan: the whole stack in another tiling, of which a layer is sliced.
RETILED = """HloModule m, is_scheduled=true

%retile (in: s8[8,64,32]) -> s8[8,64,32] {
  %in = s8[8,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy = s8[8,64,32]{2,1,0:T(8,128)(4,1)} copy(%in)
}

%layer (p: s8[8,64,32], q: s32[]) -> s8[64,32] {
  %p = s8[8,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  %tiled = s8[8,64,32]{2,1,0:T(8,128)(4,1)} fusion(%p), kind=kLoop, calls=%retile
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = s8[1,64,32]{2,1,0} dynamic-slice(%tiled, %q, %zero, %zero), dynamic_slice_sizes={1,64,32}
  ROOT %view = s8[64,32]{1,0} bitcast(%slice)
}

ENTRY %main (a: s8[8,64,32], b: s32[]) -> s8[64,32] {
  %a = s8[8,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  %b = s32[] parameter(1)
  ROOT %f = s8[64,32]{1,0} fusion(%a, %b), kind=kLoop, calls=%layer
}
"""


def test_a_slice_of_a_stack_in_another_tiling_reads_the_slice():
    (op,) = hlo_cost.program_cost(hlo.parse(RETILED), devices=1).ops
    assert op.hbm_bytes == 2 * 64 * 32


# As XLA writes what follows a matmul whose contraction is split for a GPU: each reader adds the partial sums.
PARTIAL = """HloModule m, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%third (p: f32[2,96,5]) -> bf16[32,5] {
  %p = f32[2,96,5]{2,1,0} parameter(0)
  %zero = f32[] constant(0)
  %summed = f32[96,5]{1,0} reduce(%p, %zero), dimensions={0}, to_apply=%add
  %rounded = bf16[96,5]{1,0} convert(%summed)
  %slice = bf16[32,5]{1,0} slice(%rounded), slice={[32:64], [0:5]}
  ROOT %size = bf16[32,5]{1,0} abs(%slice)
}

%both (p: f32[2,96,5]) -> (f32[96,5], bf16[32,5]) {
  %p = f32[2,96,5]{2,1,0} parameter(0)
  %zero = f32[] constant(0)
  %summed = f32[96,5]{1,0} reduce(%p, %zero), dimensions={0}, to_apply=%add
  %rounded = bf16[96,5]{1,0} convert(%summed)
  %slice = bf16[32,5]{1,0} slice(%rounded), slice={[0:32], [0:5]}
  ROOT %out = (f32[96,5]{1,0}, bf16[32,5]{1,0}) tuple(%summed, %slice)
}

ENTRY %main (a: f32[2,96,5]) -> (f32[96,5], bf16[32,5]) {
  %a = f32[2,96,5]{2,1,0} parameter(0)
  %one = bf16[32,5]{1,0} fusion(%a), kind=kLoop, calls=%third
  ROOT %two = (f32[96,5]{1,0}, bf16[32,5]{1,0}) fusion(%a), kind=kLoop, calls=%both
}
"""


def test_partial_sums_are_read_where_their_sum_is_sliced_or_given_out():
    third, both = (op.hbm_bytes for op in hlo_cost.program_cost(hlo.parse(PARTIAL), devices=1).ops)
    partial, out = 2 * 96 * 5 * 4, 32 * 5 * 2
    assert third == partial / 3 + out  # not 3 x as much
    assert both == partial + 96 * 5 * 4 + out  # what is summed for the tuple is read as a whole


# As libtpu writes a gather that other kernels hide: what begins and ends it are fusions around it.
GATHER = "f32[8,16]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}"
CHAIN = """HloModule m, is_scheduled=true

%begins (p: f32[2,16]) -> (f32[2,16], f32[8,16], u32[]) {
  %p = f32[2,16]{1,0} parameter(0)
  %gather = GATHER, frontend_attributes={chain_id="3"}, backend_config={"flag_start":"-1"}
  ROOT %call = (f32[2,16], f32[8,16], u32[]{:S(2)}) custom-call(%gather), BEGINS
}

%ends (p: f32[2,16], q: f32[8,16], r: u32[]) -> f32[8,16] {
  %p = f32[2,16]{1,0} parameter(0)
  %q = f32[8,16]{1,0} parameter(1)
  %gather = GATHER, frontend_attributes={chain_id="3"}, backend_config={"flag_start":"2"}
  %r = u32[]{:S(2)} parameter(2)
  ROOT %call = f32[8,16] custom-call(%p, %q, %gather, %r), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: f32[2,16]) -> f32[8,16] {
  %a = f32[2,16]{1,0} parameter(0)
  %start = (f32[2,16]{1,0}, f32[8,16]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%begins
  %b = f32[2,16]{1,0} get-tuple-element(%start), index=0
  %c = f32[8,16]{1,0} get-tuple-element(%start), index=1
  %d = u32[]{:S(2)} get-tuple-element(%start), index=2
  ROOT %done = f32[8,16]{1,0} fusion(%b, %c, %d), kind=kCustom, calls=%ends
}
""".replace("GATHER", GATHER).replace("BEGINS", 'custom_call_target="AsyncCollectiveStart"')


def test_a_gather_spread_over_fusions_moves_once():
    cost = hlo_cost.program_cost(hlo.parse(CHAIN), devices=4)
    (one,) = cost.collectives
    assert one.received == 3 * 2 * 16 * 4
    assert cost.hbm_bytes == (2 + 8) * 16 * 4  # the shard is read, the whole written


def test_text_without_a_program_is_an_error():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule empty")


def test_dots_of_a_batched_einsum():
    x, w = np.ones((3, 5, 7), np.float32), np.ones((3, 7, 11), np.float32)
    assert walked(lambda x, w: jnp.einsum("abc,acd->abd", x, w), x, w).flops == 2 * 3 * 5 * 7 * 11
