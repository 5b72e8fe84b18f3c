import dataclasses
import gzip
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import toy
from jax.sharding import NamedSharding, PartitionSpec

from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.plan import compiled_step, from_compiler, gpu_targets, hlo, hlo_cost, search, step_plan
from mvjax.plan import estimate as estimate_lib
from mvjax.plan import text as plan_text
from mvjax.train import chips, sharding

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "moshika_vis.py"
SLICES = {
    "v5e_4x4": "v5e:4x4",
    "v5e_8x8": "v5e:8x8",
    "v5p_2x2x4": "v5p:2x2x4",
    "v6e_4x4": "v6e:4x4",
}


MFU = 0.7  # at the roofline, at least


def estimate(name: str, **train) -> step_plan.StepPlan:
    topology = chips.topology(name)
    return estimate_lib.estimated_plan(
        search.with_mesh(toy.planned(**train), topology.devices), topology
    )


def compile_plan(run: schema.Config, topology: chips.Topology, cache: Path) -> step_plan.StepPlan:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a run
        return from_compiler.compiled_plan(run, topology, cache=cache)


def silent(text: str) -> None:
    del text


def test_parts_of_an_estimate_add_up():
    one = estimate("v5e:2x2")
    assert one.peak_hbm == sum(one.memory.values()) and one.fits and one.times is not None
    assert one.times.roofline == max(one.times.compute, one.times.hbm, one.times.collectives)
    assert one.times.no_overlap >= one.times.roofline
    roofline, no_overlap = one.speed(one.times.roofline), one.speed(one.times.no_overlap)
    assert 0 < no_overlap.mfu <= roofline.mfu < 1
    assert one.executed_flops == one.flops.model_flops + one.flops.remat
    assert roofline.hours == pytest.approx(2000 * one.times.roofline / 3600)


def test_recomputing_more_keeps_less_and_takes_longer():
    plans = [estimate("h100:4", remat=remat) for remat in search.REMATS]
    kept = [one.memory["kept activations"] for one in plans]
    assert kept == sorted(set(kept), reverse=True)
    seconds = [one.times.compute for one in plans if one.times]
    assert seconds == sorted(set(seconds))


def test_more_shards_of_the_weights_need_less_memory_and_more_traffic():
    topology = chips.topology("v5e:2x2")
    meshes = (schema.MeshConfig(4, 1, 1), schema.MeshConfig(2, 2, 1))
    one, two = (
        estimate_lib.estimated_plan(dataclasses.replace(toy.planned(), mesh=mesh), topology)
        for mesh in meshes
    )
    assert two.memory["frozen weights"] < one.memory["frozen weights"] * 0.6
    assert "all-gather" in two.collective_bytes and "all-gather" not in one.collective_bytes


def test_the_fastest_that_fits_comes_first():
    topology = chips.topology("v5e:2x2")
    plans = search.plans(toy.planned(), topology, fit=3, estimate_only=True, cache=None, say=silent)
    assert len(plans) == search.SHOWN and all(one.fits for one in plans)
    settings = {search.settings(one.run) for one in plans}
    assert len(settings) == len(plans)
    words = search.advice(plans[0]).partition("this setting: ")[2]
    chosen = re.findall(r"--set '?([^' ]+)'?", words)
    assert config_text.override(toy.planned(), chosen) == plans[0].run


def test_the_compiled_are_ranked_as_the_estimates_are(monkeypatch):
    """By one expected time: the second has the lower bound, and much that overlaps with nothing."""
    times = iter(
        (step_plan.StepTimes(1.0, 0.9, 0.0, 1.2), step_plan.StepTimes(0.95, 0.9, 0.9, 2.75))
    )

    def compiled(run, topology, *, cache):
        return dataclasses.replace(estimate_of(run, topology), times=next(times), compiled=True)

    estimate_of = estimate_lib.estimated_plan
    monkeypatch.setattr(search.from_compiler, "compiled_plan", compiled)
    topology = chips.topology("v5e:2x2")
    plans = search.plans(
        toy.planned(), topology, fit=2, estimate_only=False, cache=None, say=silent
    )
    assert [one.times.roofline for one in plans[:2]] == [1.0, 0.95]
    expected = [one.times.expected for one in plans[:2]]
    assert expected == sorted(expected)
    assert all(one.times.roofline <= one.times.expected <= one.times.no_overlap for one in plans)
    rest = [round(one.times.expected, 3) for one in plans[2:]]
    assert rest == sorted(rest)


def test_a_search_learns_from_what_took_more_than_estimated():
    """The first takes three times its estimate of what is not persistent: the second would be over too."""
    persistent = dict.fromkeys(step_plan.PERSISTENT, 2.0)
    estimates = {
        run: dataclasses.replace(
            estimate("v5e:2x2"), run=run, memory=persistent, peak_hbm=peak, hbm_limit=100.0
        )
        for peak in (50.0, 45.0, 20.0)
        if (run := toy.planned(seed=int(peak)))
    }

    def trial(run):
        peak = 8.0 + 3 * (estimates[run].peak_hbm - 8.0)
        return dataclasses.replace(estimates[run], peak_hbm=peak, fits=peak <= 100, compiled=True)

    tried = search._tried(list(estimates.values()), trial, 1)
    assert [(one.peak_hbm, one.fits) for one in tried] == [(134.0, False), (44.0, True)]


def test_a_plan_that_does_not_fit_names_a_setting_that_would():
    run = config_text.load_experiment(EXPERIMENT)
    run = dataclasses.replace(run, mesh=schema.MeshConfig(1, 1, 16))
    everything = dataclasses.replace(run, train=dataclasses.replace(run.train, remat="none"))
    (one,) = search.plans(
        everything, chips.topology("v5e:4x4"), fit=0, estimate_only=True, cache=None, say=silent
    )
    assert not one.fits
    assert "does not fit" in plan_text.full(one)
    assert re.search(r"what would make it fit.*--set mesh\.data=", search.advice(one))
    (small,) = search.plans(
        run, chips.topology("l4:16"), fit=0, estimate_only=True, cache=None, say=silent
    )
    assert "L4" in plan_text.full(small)


def test_rows_that_no_mesh_divides_are_an_error():
    run = toy.planned()
    odd = dataclasses.replace(run, data=dataclasses.replace(run.data, speech_rows=3))
    with pytest.raises(ValueError, match="no mesh of 8 devices divides data.speech_rows=3"):
        search.ranked(odd, chips.topology("v5e:2x4"))


def test_a_mesh_that_does_not_divide_the_rows_is_an_error_that_names_one():
    with pytest.raises(ValueError, match=r"not divisible by 8 data(.|\n)*--set mesh.data="):
        search.plans(
            toy.planned(),
            chips.topology("v5e:2x4"),
            fit=0,
            estimate_only=True,
            cache=None,
            say=silent,
        )


def test_a_mesh_that_the_devices_do_not_divide_is_an_error_that_names_one():
    run = dataclasses.replace(toy.planned(), mesh=schema.MeshConfig(-1, 3, 1))
    with pytest.raises(ValueError) as error:
        search.plans(
            run, chips.topology("v5e:2x2"), fit=0, estimate_only=True, cache=None, say=silent
        )
    said = str(error.value)
    assert "v5e:2x2: mesh: expected sizes that multiply to 4 devices" in said and "fsdp=3" in said
    chosen = re.findall(r"--set ([^ ;]+)", said)
    (one,) = search.plans(
        config_text.override(run, chosen),
        chips.topology("v5e:2x2"),
        fit=0,
        estimate_only=True,
        cache=None,
        say=silent,
    )
    assert one.fits


def test_every_kind_of_slice_is_one_that_the_compiler_knows():
    pytest.importorskip("libtpu")
    run = dataclasses.replace(toy.planned(), mesh=schema.MeshConfig())
    for name in ("v5litepod-1", "v6e-256", "v4-8", "v5p-128", "tpu7x:1x1x1", "tpu7x-512"):
        topology = chips.topology(name)
        assert compiled_step.topology_mesh(run, topology).size == topology.devices


def test_table_has_a_line_a_plan():
    lines = plan_text.table([estimate("v5e:2x2"), estimate("h100:4")]).splitlines()
    assert len(lines) == 3 and lines[1].startswith("v5e:2x2") and lines[2].startswith("h100:4")
    assert "100.0%" not in lines[1]


def test_a_cached_step_is_not_compiled_again(tmp_path, monkeypatch):
    pytest.importorskip("libtpu")
    run = search.with_mesh(toy.planned(), 4)
    compiled = compiled_step.CompiledStep(
        True, "", {"temporaries": 5.0, "code": 1.0}, 7.0, None, 3.0
    )
    monkeypatch.setattr(compiled_step, "_compile", lambda lowered, topology: compiled)
    topology = chips.topology("v5e:2x2")
    first = compile_plan(run, topology, tmp_path)
    (file,) = tmp_path.glob("*.json.gz")
    assert json.loads(gzip.decompress(file.read_bytes()))["peak_hbm"] == 7.0
    monkeypatch.setattr(compiled_step, "_compile", None)
    again = compile_plan(run, topology, tmp_path)
    assert (
        again == first
        and again.compiled
        and not again.from_hlo
        and again.memory["temporaries"] == 5
    )
    changed = dataclasses.replace(run, loss=schema.LossConfig(semantic_weight=3.0))
    with pytest.raises(TypeError, match="not callable"):
        compile_plan(changed, topology, tmp_path)


def test_the_address_of_a_partitioned_kernel_is_not_in_the_key_but_how_it_attends_is():
    line = '%1 = stablehlo.custom_call @CustomSPMDPartitioning(%0) {{api_version = 2, backend_config = "{}"}}'
    here, there = (compiled_step._key_text(line.format(n), toy.MODEL) for n in (14067, 24067))
    windowed = dataclasses.replace(toy.MODEL, backbone=schema.BackboneConfig(context=7))
    assert here == there != compiled_step._key_text(line.format(14067), windowed)
    assert "%0" in here and compiled_step._key_text("add %0", toy.MODEL) == "add %0"


@pytest.mark.parametrize("sizes", [(8, 1, 2), (2, 4, 2), (1, 8, 2)])
def test_a_mesh_may_split_an_axis_of_the_torus(sizes):
    pytest.importorskip("libtpu")
    run = dataclasses.replace(toy.planned(), mesh=schema.MeshConfig(*sizes))
    mesh = compiled_step.topology_mesh(run, chips.topology("v6e:4x4"))
    assert mesh.devices.shape == sizes and len(set(mesh.devices.flat)) == 16


def test_what_two_slices_exchange_is_read_from_their_program():
    """A gradient over rows on both: each device receives its shard of the sum, over the network."""
    pytest.importorskip("libtpu")
    run = dataclasses.replace(toy.planned(), mesh=schema.MeshConfig(2, 4))
    topology = chips.topology("v5e:2x2x2")
    mesh = compiled_step.topology_mesh(run, topology)
    assert [d.slice_index for d in mesh.devices.flat] == 4 * [0] + 4 * [1]
    whole, rows = (NamedSharding(mesh, PartitionSpec(axes)) for axes in ("fsdp", sharding.ROWS))
    arguments = (
        jax.ShapeDtypeStruct((256, 128), jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=rows),
    )
    gradient = jax.jit(jax.grad(lambda w, x: jnp.square(x @ w).sum()), out_shardings=whole)
    program = gradient.trace(*arguments).lower(lowering_platforms=("tpu",)).compile().as_text()
    cost = hlo_cost.program_cost(hlo.parse(program), devices=topology.devices_per_slice)
    between = [one for one in cost.collectives if one.kind == hlo_cost.BETWEEN_SLICES]
    assert [(one.times, one.received) for one in between] == [(1, 256 * 128 * 4 / 4)]
    times = from_compiler.step_times(cost, topology, mesh)
    assert times.collectives > between[0].received / topology.chip.network_bandwidth


def test_the_data_axis_of_a_plan_spans_the_slices():
    run = dataclasses.replace(toy.planned(), mesh=schema.MeshConfig(1, 8))
    topology = chips.topology("v5e:2x2x2")
    with pytest.raises(
        ValueError, match=r"a multiple of 2, got data=1.*\n.*--set mesh.data=[248] "
    ):
        search.plans(run, topology, fit=0, estimate_only=True, cache=None, say=silent)
    for one in search.ranked(run, topology):
        assert one.run.mesh.data % 2 == 0 and one.collective_bytes[hlo_cost.BETWEEN_SLICES] > 0


def test_levels_without_a_loss_are_not_gathered_on_tpus():
    """`depformer.first_levels` leaves them out; XLA for GPUs gathers the whole stack."""
    all_levels = toy.planned().model.codebooks_out

    def gathered(name: str, levels: int) -> float:
        loss = dataclasses.replace(toy.planned().loss, trained_codebooks=levels)
        run = dataclasses.replace(toy.planned(), loss=loss, mesh=schema.MeshConfig(2, 2))
        return estimate_lib.estimated_plan(run, chips.topology(name)).collective_bytes["all-gather"]

    one, two, each = (gathered("v5e:2x2", n) for n in (1, 2, all_levels))
    assert one < two < each and each - one == pytest.approx((all_levels - 1) * (two - one))
    assert gathered("h100:4", 1) == gathered("h100:4", all_levels) > each  # each kind of rows apart


@pytest.mark.parametrize(
    "message",
    [
        "Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(17.50G) exceeds available HBM (15.75G).",
    ],
)
def test_a_step_that_is_too_big_says_by_how_much(message):
    class Lowered:
        def compile(self, compiler_options):
            raise compiled_step.jax.errors.JaxRuntimeError(message)

    compiled = compiled_step._compile(Lowered(), chips.topology("v5e:2x2"))
    assert (
        not compiled.fits
        and compiled.peak_hbm == 17.5 * 2**30
        and compiled.hbm_limit == 15.75 * 2**30
    )


def test_a_gpu_step_that_xlas_own_kernels_do_not_take_is_given_to_cublas():
    tried = []

    class Lowered:
        def compile(self, compiler_options):
            tried.append(compiler_options)
            if compiler_options.get("xla_gpu_enable_triton_gemm", True):
                raise jax.errors.JaxRuntimeError(f"INTERNAL: {gpu_targets.NO_TILES} that satisfy")
            return "compiled"

    assert compiled_step._program(Lowered(), chips.topology("l4:1")) == "compiled"
    assert len(tried) == 2 and tried[1].items() > tried[0].items()


def test_a_step_that_the_compiler_refuses_is_an_error():
    class Lowered:
        def compile(self, compiler_options):
            raise compiled_step.jax.errors.JaxRuntimeError("INTERNAL: no")

    with pytest.raises(ValueError, match="v5e:2x2: the compiler refused the program: INTERNAL: no"):
        compiled_step._compile(Lowered(), chips.topology("v5e:2x2"))


# All four take seven minutes and more: `make plans`.
@pytest.mark.plans
@pytest.mark.parametrize("pick", SLICES)
def test_the_full_recipe_compiles_and_fits(pick):
    """The 8.3 B model on four slices; minutes each, or seconds if the same program was compiled before."""
    pytest.importorskip("libtpu")
    run = config_text.load_experiment(EXPERIMENT, pick=pick)
    one = compile_plan(run, chips.topology(SLICES[pick]), compiled_step.cache_folder())
    assert one.fits and one.peak_hbm < one.hbm_limit, plan_text.full(one)
    assert one.from_hlo and one.times, plan_text.full(one)
    assert one.speed(one.times.roofline).mfu > MFU, plan_text.full(one)
    if pick in ("v5e_4x4", "v6e_4x4"):  # even one operation after the other
        assert one.speed(one.times.no_overlap).mfu > 0.55, plan_text.full(one)
    counted = estimate_lib.estimated_plan(one.run, one.topology)
    # the compiler's program computes what was counted, and little more
    assert 0.95 < one.executed_flops / counted.executed_flops < 1.25, plan_text.full(one)
    received = (sum(plan.collective_bytes.values()) for plan in (counted, one))
    pairs = {
        "memory": (counted.peak_hbm, one.peak_hbm),
        "HBM": (counted.hbm_traffic, one.hbm_traffic),
        "collectives": tuple(received),
    }
    ratios = {name: ours / theirs for name, (ours, theirs) in pairs.items()}
    assert all(abs(ratio - 1) < 0.15 for ratio in ratios.values()), f"{ratios}\n{counted}"
