import dataclasses
import functools
import math
from unittest import mock

import jax
import pytest
import toy

from mvjax import gates
from mvjax.config import schema
from mvjax.nn import compute
from mvjax.plan import compiled_step, hlo, hlo_cost
from mvjax.train import chips, sharding
from mvjax.train import flops as flops_lib

# where the matmuls of a part come from in the traced program
PLACES = {
    "image encoder": ("encode_images",),
    "gates": ("D,DG->", "G,GD->"),
    "MLP": ("blocks/mlp/", "backbone/mlp"),
}


def planned(**train) -> schema.Config:
    run = toy.planned(loss_chunk=9, **train)
    return toy.with_data(run, speech_rows=2, speechless_rows=3)


@functools.cache
def program() -> hlo_cost.ProgramCost:
    """The step as XLA compiles it for one CPU, walked; layers in a loop, as those of larger models."""
    run = planned()
    mesh = sharding.make_mesh(schema.MeshConfig(), jax.devices()[:1])
    arguments = compiled_step.step_arguments(run, mesh)
    looped = mock.patch.object(compute.Compute, "unroll", lambda self, layers: 1)
    with looped, jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        text = compiled_step.lower(run, mesh, arguments).compile().as_text()
    return hlo_cost.program_cost(hlo.parse(text), devices=1)


def executed(*, again: bool, has: tuple[str, ...], lacks: tuple[str, ...] = ()) -> float:
    ops = [
        op
        for op in program().ops
        if ("rematted_computation" in op.op_name) == again
        and any(word in op.op_name for word in has)
        and not any(word in op.op_name for word in lacks)
    ]
    return sum(op.times * op.flops for op in ops)


@pytest.mark.parametrize(
    "part", [pytest.param("image encoder", marks=pytest.mark.slow), "gates", "MLP"]
)
def test_parts_are_what_xla_computes(part):
    counted = flops_lib.step_flops(planned()).parts[part]
    lacks = ("depformer", "encode_images") if part == "MLP" else ()
    found = executed(again=False, has=PLACES[part], lacks=lacks)
    assert math.isclose(found, counted.needed, rel_tol=1e-9), (found, counted)
    found = executed(again=True, has=PLACES[part], lacks=lacks)
    assert math.isclose(found, counted.remat, rel_tol=1e-9, abs_tol=0.5), (found, counted)


def test_all_of_it_is_what_xla_computes(monkeypatch):
    """But for what plain attention and a scan do beyond need: all pairs, and gradients of layer 0."""
    monkeypatch.setattr(flops_lib, "_window_pairs", lambda length, window: float(length**2))
    flops = flops_lib.step_flops(planned())
    counted = flops.model_flops + flops.remat
    parts = flops.parts["self-attention"]
    layer0 = 2 * parts.forward / toy.MODEL.backbone.layers
    found = program().flops
    assert counted <= found * 1.001, (found, flops)
    assert found <= (counted + layer0) * 1.03, (found, flops)


def test_a_frozen_matrix_costs_4_and_a_trained_one_6():
    run = planned()
    parts = flops_lib.step_flops(run).parts
    positions = flops_lib.frames_per_step(run.data)
    assert positions == 2 * 9 + 3 * 7
    c = toy.MODEL.backbone
    assert parts["MLP"].needed == 4 * positions * c.layers * 3 * c.width * c.hidden
    assert parts["gates"].needed == 6 * positions * c.layers * 2 * c.width * 14
    everything = dataclasses.replace(run.train, trained=(".*",))
    trained = flops_lib.step_flops(dataclasses.replace(run, train=everything))
    assert trained.parts["MLP"].needed == 6 * positions * c.layers * 3 * c.width * c.hidden
    assert trained.all_trained == flops_lib.step_flops(run).all_trained > trained.model_flops * 0.95


def test_layers_without_cross_attention_do_not_pay_for_it():
    """By hand: 1 of 3 layers looks, the last; before it no gradient is needed of what is frozen."""
    run = planned()
    xa = dict(share="none", dim=16)
    every, last = (
        flops_lib.step_flops(dataclasses.replace(run, model=toy.with_cross_attention(**xa, **one)))
        for one in ({}, {"layers": (2,)})
    )
    c, tokens, T = toy.MODEL.backbone, 5 * 4, 2 * 9 + 3 * 7
    D, kv = c.width, 2 * 16 * c.width
    assert (
        every.parts["image keys and values"].forward - last.parts["image keys and values"].forward
        == 2 * tokens * (3 - 1) * kv
    )
    assert last.parts["image keys and values"].forward == 2 * tokens * (20 * 16 + kv)
    looking = 2 * T * 2 * D * D + 4 * T * 4 * D
    assert (
        last.parts["cross-attention"].forward
        == looking
        == every.parts["cross-attention"].forward / 3
    )
    assert last.parts["gates"].needed == every.parts["gates"].needed / 3
    mlp = 2 * T * 3 * D * c.hidden
    assert last.parts["MLP"].needed == (3 + 1) * mlp
    assert last.parts["self-attention"].needed == last.parts["self-attention"].forward


def test_a_local_window_costs_keys_and_values_of_frames_and_its_pairs():
    plain, local = (
        flops_lib.step_flops(
            dataclasses.replace(planned(), model=toy.with_cross_attention(gate=gate))
        ).parts["cross-attention"]
        for gate in (None, gates.LocalWindow(3))
    )
    D, X, T, d = 24, 3, flops_lib.frames_per_step(planned().data), planned().data
    pairs = d.speech_rows * (3 * d.speech_frames - 3) + d.speechless_rows * (
        3 * d.speechless_tokens - 3
    )
    assert local.forward - plain.forward == X * (2 * T * 2 * D * D + 4 * pairs * D)


def test_recomputation_follows_the_policy():
    amounts = [
        flops_lib.step_flops(planned(remat=remat)).remat
        for remat in ("none", "frozen", "attention", "full")
    ]
    assert amounts[0] == 0 and amounts == sorted(set(amounts))


def test_speech_rows_alone_pay_for_the_depth_transformer():
    run = planned()
    text = dataclasses.replace(run, data=dataclasses.replace(run.data, speech_rows=0))
    assert flops_lib.step_flops(text).parts["depth transformer"].needed == 0
    one = dataclasses.replace(run, loss=schema.LossConfig(trained_codebooks=1))
    two = flops_lib.step_flops(run).parts["depth transformer"].needed
    assert 0.4 < flops_lib.step_flops(one).parts["depth transformer"].needed / two < 0.5


def test_a_window_limits_the_pairs():
    assert flops_lib._window_pairs(9, 5) == sum(min(q + 1, 5) for q in range(9))
    assert flops_lib._window_pairs(4, 5) == 10


def test_mfu():
    assert flops_lib.Throughput(9, 6e12, 3 * 8e12).mfu(0.5) == pytest.approx(0.5)


def test_throughput_of_a_run(tmp_path, monkeypatch):
    run = toy.make_config(tmp_path)
    mesh = sharding.make_mesh(schema.MeshConfig())
    throughput = flops_lib.throughput(run, mesh)
    assert throughput.frames == 4 * 9 + 8 * 7 and throughput.peak_flops is None
    # the backbone's MLPs alone
    assert throughput.model_flops > 4 * throughput.frames * 3 * 3 * 24 * 66
    monkeypatch.setattr(chips, "of_device", lambda _: chips.CHIPS["v5e"])
    assert flops_lib.throughput(run, mesh).peak_flops == 8 * 197e12
